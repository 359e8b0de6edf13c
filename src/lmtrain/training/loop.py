"""The loop: the order in which everything happens. What each of these is, says `lmtrain.training.session`."""

from __future__ import annotations

from lmtrain.training.session import Session


def fit(run: Session) -> str:
    """Trains to the end or to a signal; returns why it ended."""
    if run.owes_evaluation:  # a signal came before it
        run.validate()
    else:
        run.check_gradients()
    while True:
        for report in run.steps():
            accepted = run.accept(report)
            if run.owes_evaluation and not run.stop.requested:
                run.validate()
            if accepted and run.owes_checkpoint:
                run.save()
            if run.stop.requested:
                run.save(is_scheduled=False, is_final=True)
                return run.stop.reason
            if run.stop.take_save_request():
                run.save(is_scheduled=False)
        run.finish()
        if run.share >= 1:  # else numbers that were not finite made training go back
            return run.why_it_ended
