"""A place in the training -> the learning rate. It depends on nothing else, so that a resumed trial has the same."""

import math

from oneshot.config.trial import ScheduleConfig, TrialConfig


def learning_rate(config: TrialConfig, *, step: int, update: int) -> float:
    """Return the learning rate of an optimiser step: `update` of the step after `step` finished ones, from 0."""
    num_updates = config.train.updates_per_rollout if config.train.method == "grpo" else 1
    done, total = step * num_updates + update, config.train.num_steps * num_updates
    return config.optim.lr * factor(done, total, config.optim.schedule)


def factor(done: int, total: int, config: ScheduleConfig) -> float:
    """Return the learning rate as a share of its peak after `done` of `total` optimiser steps.

    As in transformers' schedulers, the warm-up is linear from 0 over a rounded-up number of steps, so that the first
    step of a training with a warm-up changes nothing; then `final + (1 - final) * course`.
    """
    num_warmup = math.ceil(config.warmup * total)
    if done < num_warmup:
        return done / num_warmup
    progress = (done - num_warmup) / max(1, total - num_warmup)
    course = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}[config.kind]
    return config.final + (1 - config.final) * course
