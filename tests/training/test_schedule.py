"""Every schedule against its formula at hand-computed points, and exact resumption."""

import json
import math

import pytest

from lmtrain.training.schedule import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    OneCycle,
    Plateau,
    Progress,
    RangeTest,
    Step,
    fraction_done,
)


def at(fraction=0.0, epoch=0.0, step=0):
    return Progress(step=step, epoch=epoch, fraction=fraction)


def test_constant_is_one_everywhere():
    assert [Constant().rate(at(f, 9 * f)) for f in (0, 0.5, 1)] == [1, 1, 1]


def test_cosine_rises_linearly_over_the_warmup_and_falls_along_half_a_cosine_to_final():
    schedule = Cosine(warmup=0.2, final=0.1)
    for fraction, rate in [(0, 0), (0.05, 0.25), (0.2, 1), (0.6, 0.1 + 0.9 / 2), (1, 0.1)]:
        assert schedule.rate(at(fraction)) == pytest.approx(rate)
    assert schedule.rate(at(0.4)) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)


def test_linear_rises_over_the_warmup_and_falls_on_a_straight_line_to_final():
    schedule = Linear(warmup=0.2, final=0.5)
    for fraction, rate in [(0, 0), (0.1, 0.5), (0.2, 1), (0.4, 0.875), (0.6, 0.75), (1, 0.5)]:
        assert schedule.rate(at(fraction)) == pytest.approx(rate)


@pytest.mark.parametrize("schedule", [Cosine(), Linear()])
def test_without_warmup_the_first_rate_is_full_and_the_last_zero(schedule):
    assert (schedule.rate(at(0)), schedule.rate(at(1))) == (1, 0)


def test_halving_every_two_epochs_halves_at_two_four_and_six():
    rates = [Step(0.5, 2).rate(at(epoch=epoch)) for epoch in (0, 1.99, 2, 3.9, 4, 6)]
    assert rates == [1, 1, 0.5, 0.5, 0.25, 0.125]


def test_zarembas_small_model_keeps_its_rate_for_four_epochs_and_then_halves_it_each_epoch():
    zaremba = [0.5 ** max(index + 1 - 4, 0) for index in range(13)]
    assert [Step(0.5, 1, after=4).rate(at(epoch=index + 0.5)) for index in range(13)] == zaremba


def test_exponential_multiplies_by_the_factor_per_epoch_continuously():
    assert Exponential(0.9).rate(at(epoch=2.5)) == pytest.approx(0.9**2.5)


def test_plateau_quarters_the_rate_whenever_validation_is_no_better_than_the_best():
    schedule, rates = Plateau(0.25), []
    for nats in [5.0, 4.0, 4.0, 4.5, 3.9, math.nan, 3.8]:
        schedule.after_evaluation(nats)
        rates.append(schedule.rate(at()))
    assert rates == [1, 1, 1 / 4, 1 / 16, 1 / 16, 1 / 64, 1 / 64]


def test_plateau_waits_for_as_many_stale_evaluations_as_its_patience_and_counts_anew_after_a_cut():
    schedule, rates = Plateau(0.5, patience=2), []
    for nats in [5.0, 6.0, 4.0, 6.0, 6.0, 6.0, 6.0]:
        schedule.after_evaluation(nats)
        rates.append(schedule.rate(at()))
    assert rates == [1, 1, 1, 1, 0.5, 0.5, 0.25]


def test_plateau_goes_on_from_its_json_as_if_it_had_never_stopped():
    losses = [5.0, 5.1, 4.9, 5.0, 5.0, 4.8, 5.0, 5.2]
    whole, first, second = Plateau(0.25, 2), Plateau(0.25, 2), Plateau(0.25, 2)
    for nats in losses:
        whole.after_evaluation(nats)
    for nats in losses[:4]:
        first.after_evaluation(nats)
    second.load(json.loads(json.dumps(first.document())))
    for nats in losses[4:]:
        second.after_evaluation(nats)
    assert second.document() == whole.document()
    assert second == whole


def test_one_cycle_goes_up_stays_comes_down_and_anneals_to_zero():
    schedule = OneCycle(up=0.1, flat=0.3, down=0.4, div=10)
    points = [(0, 0.1), (0.05, 0.55), (0.1, 1), (0.25, 1), (0.4, 1), (0.6, 0.55), (0.8, 0.1), (0.9, 0.05), (1, 0)]
    for fraction, rate in points:
        assert schedule.rate(at(fraction)) == pytest.approx(rate, abs=1e-12)


def test_one_cycle_moves_beta1_against_the_rate():
    schedule = OneCycle(up=0.1, flat=0.3, down=0.4, beta1_low=0.7, beta1_high=0.8)
    for fraction, beta1 in [(0, 0.8), (0.05, 0.75), (0.1, 0.7), (0.4, 0.7), (0.6, 0.75), (0.8, 0.8), (1, 0.8)]:
        assert schedule.beta1(at(fraction)) == pytest.approx(beta1)


@pytest.mark.parametrize("shares", [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1), (0.5, 0, 0.5)])
def test_one_cycle_allows_phases_of_no_length(shares):
    schedule = OneCycle(*shares)
    assert all(0 <= schedule.rate(at(number / 20)) <= 1 for number in range(21))


def test_range_test_grows_by_equal_factors():
    schedule = RangeTest(1e-4, 1.0)
    rates = [schedule.rate(at(number / 4)) for number in range(5)]
    assert rates == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])


@pytest.mark.parametrize("schedule", [Constant(), Cosine(), Linear(), Step(0.5, 1), Exponential(0.9), OneCycle()])
def test_schedules_without_memory_have_an_empty_state_and_ignore_evaluations(schedule):
    before = schedule.rate(at(0.3, 2))
    schedule.after_evaluation(7.0)
    assert schedule.rate(at(0.3, 2)) == before
    assert schedule.document() == {}
    schedule.load({})


def test_fraction_done_follows_the_nearest_limit():
    where = {"step": 10, "epoch": 0.5, "elapsed_seconds": 30.0}
    assert fraction_done(**where) == 0
    assert fraction_done(**where, num_steps=100) == 0.105
    assert fraction_done(**where, num_steps=100, num_epochs=2) == 0.25
    assert fraction_done(**where, num_steps=100, num_epochs=2, max_seconds=60) == 0.5
    assert fraction_done(**where, max_seconds=20) == 1


def test_no_step_of_a_run_counted_in_steps_or_epochs_has_rate_zero():
    schedule = Cosine(warmup=0.1)
    steps = [fraction_done(step=step, epoch=0, elapsed_seconds=0, num_steps=50) for step in range(50)]
    epochs = [
        fraction_done(step=step, epoch=step / 25, elapsed_seconds=0, epochs_per_step=1 / 25, num_epochs=2) for step in range(50)
    ]
    assert epochs == pytest.approx(steps)
    assert min(schedule.rate(at(share)) for share in steps) > 0
