"""Who proposes the next settings of a search: at random, from a grid, or Optuna's TPE."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from adray.config import SearchConfig
from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.search_space import Domain, SearchSpace, Values

if TYPE_CHECKING:
    import optuna

_TRIES = 100
"""Draws in a row that may repeat known settings before a space counts as exhausted."""


class Searcher(Protocol):
    """Proposes settings, and may learn from scores."""

    def ask(self, count: int) -> list[Values]:
        """Propose at most `count` further settings, none once the space is exhausted."""

    def tell(self, values: Values, score: float | None) -> None:
        """Take the score of settings, higher is better, None where the trial failed or was stopped."""


def make_searcher(config: SearchConfig, space: SearchSpace) -> Searcher:
    """Make the searcher that a configuration names.

    Raises:
        InputError: for ``optuna`` where it is not installed.
    """
    if config.searcher == "optuna":
        return OptunaSearcher(space, config.seed)
    if config.searcher == "grid":
        return ListSearcher(iter(space.grid(config.grid_points)))
    return ListSearcher(_random(space, config.seed))


def _random(space: SearchSpace, seed: int) -> Iterator[Values]:
    """Draw settings without repetition, always the same for a seed."""
    rng = np.random.default_rng(seed)
    known: set[str] = set()
    repeated = 0
    while repeated < _TRIES:
        values = space.sample(rng)
        repeated = repeated + 1 if repr(values) in known else 0
        if not repeated:
            known.add(repr(values))
            yield values


class ListSearcher:
    """Settings that are known beforehand; scores change nothing."""

    def __init__(self, settings: Iterator[Values]) -> None:
        self._settings = settings

    def ask(self, count: int) -> list[Values]:
        """See `Searcher`."""
        return list(itertools.islice(self._settings, count))

    def tell(self, values: Values, score: float | None) -> None:
        """Learn nothing."""


class OptunaSearcher:
    """Optuna's tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011), in memory.

    After a restart it gets again what the store knows, which is all that it needs.

    Raises:
        InputError: where Optuna is not installed.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        if importlib.util.find_spec("optuna") is None:
            raise InputError(Sentence.of("search no optuna"))
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        self.study = optuna.create_study(direction="maximize", sampler=sampler)
        self.space = space
        self._distributions = {
            name: _distribution(domain) for name, domain in space.domains.items()
        }
        self._open: dict[str, list[optuna.trial.Trial]] = {}

    def ask(self, count: int) -> list[Values]:
        """See `Searcher`. The same settings may come twice, and then need no second trial."""
        found = []
        for _ in range(count):
            trial = self.study.ask(self._distributions)
            values = {name: self._value(name, trial.params[name]) for name in self.space.domains}
            self._open.setdefault(repr(values), []).append(trial)
            found.append(values)
        return found

    def tell(self, values: Values, score: float | None) -> None:
        """See `Searcher`. Settings that this process did not propose join the study.

        The defaults may lie outside the space. Optuna has no place for such settings, so it does
        not get them.
        """
        import optuna

        states = optuna.trial.TrialState
        state = states.FAIL if score is None else states.COMPLETE
        proposed = self._open.pop(repr(dict(values)), [])
        for trial in proposed:
            self.study.tell(trial, score, state)
        if proposed or not self._has(values):
            return

        params = {name: self._param(name, value) for name, value in values.items()}
        self.study.add_trial(
            optuna.trial.create_trial(
                state=state, value=score, params=params, distributions=self._distributions
            )
        )

    def _has(self, values: Values) -> bool:
        """Tell whether settings lie in the space."""
        return all(_holds(self.space.domains[name], value) for name, value in values.items())

    def _value(self, name: str, param: Any) -> Any:
        domain = self.space.domains[name]
        if domain.kind == "choice":
            return domain.choices[param]
        if "int" in domain.kind:
            return param
        assert domain.low is not None
        assert domain.high is not None
        return min(max(float(f"{param:.4g}"), domain.low), domain.high)

    def _param(self, name: str, value: Any) -> Any:
        domain = self.space.domains[name]
        return domain.choices.index(value) if domain.kind == "choice" else value


def _holds(domain: Domain, value: Any) -> bool:
    """Tell whether a value lies in a domain."""
    if domain.kind == "choice":
        return value in domain.choices
    assert domain.low is not None
    assert domain.high is not None
    return isinstance(value, int | float) and domain.low <= value <= domain.high


def _distribution(domain: Domain) -> optuna.distributions.BaseDistribution:
    """Give a domain as Optuna has it, a choice by its place, since its values may be lists."""
    import optuna

    log = domain.kind.startswith("log_")
    if domain.kind == "choice":
        return optuna.distributions.CategoricalDistribution(range(len(domain.choices)))
    assert domain.low is not None
    assert domain.high is not None
    if "int" in domain.kind:
        return optuna.distributions.IntDistribution(int(domain.low), int(domain.high), log=log)
    return optuna.distributions.FloatDistribution(domain.low, domain.high, log=log)
