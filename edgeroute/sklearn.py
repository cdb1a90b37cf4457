"""`RoutedClassifier`, a scikit-learn classifier of two: one on the device, and another for the rows of which that is not sure."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from threading import main_thread
from typing import TYPE_CHECKING, Any
from weakref import finalize

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import get_tags
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data

from edgeroute.confidence.output_forms_labels_and_comparison import Labels, label_form
from edgeroute.router.base_router import in_background
from edgeroute.router.router import Router
from edgeroute.system.fork_safety import ForkSafe, per_process
from edgeroute.system.signal_safe_locks import SafeLock

if TYPE_CHECKING:
    from edgeroute.confidence.certificate import Certificate

BATCH = 32  # rows of one request, as `Router.calibrate` has them
ALIKE = "case, white space, a final full stop, a fraction of 0, and quotes or stars around it do not count"  # as of `label_form`


class _Open:
    """Router that is closed once neither a classifier nor a prediction has it: in the background, and at once at exit."""

    def __init__(self, router: Router[Any]) -> None:
        self.router = router
        finalize(self, _close, router)


def _close(router: Router[Any]) -> None:
    if main_thread().is_alive():
        in_background(router.close)
    else:  # at exit, where nothing waits for a thread
        router.close()


class _Kept(ForkSafe):
    """Router of a fitted classifier, for all its predictions: limits and breakers hold over them, and go on in a forked child."""

    _lock = per_process(SafeLock)
    _of: Any = (None, None, None, None)  # what the router is made of
    _open: _Open

    def answers(self, make: Callable[[float], Router[Any]], of: tuple[float, Any, Any, dict[str, Any]], rows: Any) -> list[Any]:
        """Return the answers for rows, by the router. It is made anew if what it is made of was replaced, as by `set_params`.

        Args:
            make: makes a router, of a threshold.
            of: threshold, edge, cloud and options of which it is made.
            rows: [n, features].
        """
        threshold, edge, cloud, options = of
        with self._lock:
            old = self._of
            if (threshold, options) != (old[0], old[3]) or edge is not old[1] or cloud is not old[2]:
                self._of, self._open = of, _Open(make(threshold))
            in_use = self._open  # others may replace it meanwhile
        return [answer for i in range(0, len(rows), BATCH) for answer in in_use.router.infer_many(list(rows[i : i + BATCH]))]


class RoutedClassifier(MetaEstimatorMixin, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classifier of scikit-learn's kind, whose rows go from an edge to a cloud where the edge's confidence is below a threshold.

    `fit` trains on a share of the rows, and calibrates the threshold on the others, drawn at random. NaN in rows is allowed if
    the tags of both allow it; put an imputer before this classifier otherwise, in a pipeline.

    Args:
        edge: classifier with `predict_proba`. `fit` trains a clone; pass a trained one as `FrozenEstimator(classifier)`.
        cloud: another classifier, or a cloud of `Router` whose values are classes: an address, endpoint, function of a row.
        max_loss: exactly one of these three is the guarantee, as of `Router.calibrate`; 0..1.
        max_error: see above.
        max_defer: see above.
        sure: probability of the guarantee.
        calibrate_on: share of the rows for the calibration, 0..1; all, where nothing is trained.
        random_state: seed, or generator, of the split; None: another split in each `fit`.
        options: further arguments of the `Router`, such as `limits` and `egress`.

    Attributes:
        classes_: [k], the classes of `y`.
        edge_: the trained edge.
        cloud_: the trained cloud, or `cloud` itself.
        certificate_: the certificate that the calibration found.
    """

    classes_: Any
    edge_: Any
    cloud_: Any
    certificate_: Certificate

    def __init__(
        self, edge: Any, cloud: Any, *, max_loss: float | None = None, max_error: float | None = None,
        max_defer: float | None = None, sure: float | None = 0.95, calibrate_on: float = 0.3, random_state: Any = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.edge, self.cloud, self.sure, self.calibrate_on, self.options = edge, cloud, sure, calibrate_on, options
        self.max_loss, self.max_error, self.max_defer, self.random_state = max_loss, max_error, max_defer, random_state

    def fit(self, X: Any, y: Any) -> RoutedClassifier:  # noqa: N803 - as in scikit-learn
        """Train clones on rows X [n, features] and classes y [n], calibrate the threshold, and return this classifier.

        Trains on a random share of the rows, and calibrates on the others with a router of its own, which asks both sides for
        each of them. A model without `fit`, or frozen, is used as it is; if both are, all rows calibrate. Sets the attributes
        with a trailing underscore.

        Raises:
            NotEnough: the rows for the calibration are too few for the guarantee.
            ValueError: X or y has another form, two classes are one label for the router, as "1" and "1.0" or "a" and "A" are, or
                the guarantee is invalid.
            CloudError, NoAnswer: the cloud does not answer.
        """
        X, y = self._validated(X, y)  # noqa: N806
        check_classification_targets(y)
        self.classes_ = unique_labels(y)
        by_form = {label_form(name): name for name in self.classes_.tolist()}
        for name in self.classes_.tolist():
            if (other := by_form[label_form(name)]) != name:
                raise ValueError(f"the classes {name!r} and {other!r} of y are one label for the router, as {ALIKE}: rename one")
        of_fit, of_calibration = (X, y), (X, y)
        if any(hasattr(model, "fit") and not isinstance(model, FrozenEstimator) for model in (self.edge, self.cloud)):
            parts = train_test_split(X, y, test_size=self.calibrate_on, random_state=self.random_state)
            of_fit, of_calibration = parts[::2], parts[1::2]
        self.edge_, self.cloud_ = (clone(m).fit(*of_fit) if hasattr(m, "fit") else m for m in (self.edge, self.cloud))
        with self._router(1.0) as router:
            self.certificate_ = router.calibrate(
                *of_calibration, max_loss=self.max_loss, max_error=self.max_error, max_defer=self.max_defer, sure=self.sure,
                progress=False,
            ).certificate  # fmt: skip
            if all(why := router.decide(row).plan.stays for row in of_calibration[0]):
                warnings.warn(f"the cloud will never be asked, as no row of the calibration may be sent: {why}", stacklevel=2)
        self._kept = _Kept()
        return self

    def predict(self, X: Any) -> Any:  # noqa: N803
        """Return the class of each row, [n]; errors as of `predict_proba`."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(1)]

    def predict_proba(self, X: Any) -> Any:  # noqa: N803
        """Return the probability of each class, [n, k], by the side that answers the row: of its outputs, or 1 for its class.

        Routes the rows in batches, through one router until the next `fit`: the limits in `options` are of all predictions
        together, in this process. Warns if rows were answered by the edge for lack of an answer of the cloud.

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: X has another form, or an answer is no class of `y`.
        """
        check_is_fitted(self)
        of = self.certificate_.threshold, self.edge_, self.cloud_, dict(self.options or {})
        answers = self._kept.answers(self._router, of, self._validated(X, reset=False))
        if degraded := sum(answer.degraded for answer in answers):
            warnings.warn(f"the cloud did not answer {degraded} of {len(answers)} rows: the edge's answers count", stacklevel=2)
        rows, labels = np.zeros((len(answers), len(self.classes_))), Labels(self.classes_.tolist(), "y")
        index = {name: i for i, name in enumerate(labels.labels or ())}
        for row, answer in zip(rows, answers, strict=True):
            parts, value = answer.outputs, labels.same(answer.value)
            if not isinstance(parts, Mapping) or not parts.keys() <= index.keys() or max(parts, key=parts.__getitem__) != value:
                parts = {value: 1.0}
            if not parts.keys() <= index.keys():
                raise ValueError(f"an answer of {answer.leg} is no class of y")
            row[[index[name] for name in parts]] = [*parts.values()]
        return rows

    def _validated(self, *data: Any, **options: Any) -> Any:
        """Return the rows, and the classes if given, as scikit-learn validates them, with NaN in rows if the tags allow it."""
        allowed = get_tags(self).input_tags.allow_nan
        return validate_data(self, *data, ensure_all_finite="allow-nan" if allowed else True, **options)

    def __getstate__(self) -> Any:
        """Return the state of copies and pickles, which make a router of their own."""
        return {name: value for name, value in super().__getstate__().items() if name != "_kept"}

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        if hasattr(self, "certificate_"):
            self._kept = _Kept()

    def __sklearn_tags__(self) -> Any:
        """Return scikit-learn's tags. Rows may have NaN if both sides allow it; one without tags, as a function, is not asked."""
        tags, sides = super().__sklearn_tags__(), [side for side in (self.edge, self.cloud) if hasattr(side, "__sklearn_tags__")]
        tags.input_tags.allow_nan = bool(sides) and all(get_tags(side).input_tags.allow_nan for side in sides)
        return tags

    def _router(self, threshold: float) -> Router[Any]:
        """Return a new router of the trained edge and the cloud with this threshold and `options`.

        A classifier without probabilities becomes a function.
        """
        model = self.cloud_
        labels_alone = hasattr(model, "predict") and not hasattr(model, "predict_proba")
        cloud = (lambda row: model.predict([row])[0]) if labels_alone else model
        return Router(self.edge_, cloud, threshold=threshold, **(self.options or {}))
