"""Several processes that train one model together: who they are, what they exchange, and how they end. See README.md here."""
