"""`edgeroute.sklearn.RoutedClassifier`: scikit-learn's own suite, and its tools on a classifier that is a router."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from lazily import needs

from edgeroute import Limits, NoAnswer, PlainJson
from edgeroute.confidence import NotEnough
from edgeroute.testing import CannedServer, http_reply

needs("sklearn.frozen")

from sklearn.base import clone  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from sklearn.frozen import FrozenEstimator  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV, train_test_split  # noqa: E402
from sklearn.naive_bayes import GaussianNB  # noqa: E402
from sklearn.svm import SVC  # noqa: E402
from sklearn.utils.estimator_checks import estimator_checks_generator  # noqa: E402

from edgeroute.sklearn import RoutedClassifier  # noqa: E402

CHECKED = RoutedClassifier(LogisticRegression(), GaussianNB(), max_defer=0.5, sure=None, random_state=0)


def defer_all(model):
    """Has a fitted model ask its cloud about each row."""
    model.certificate_ = model.certificate_._replace(threshold=inf)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "check"), [pytest.param(*pair, id=pair[1].func.__name__) for pair in estimator_checks_generator(CHECKED)]
)
def test_the_suite_of_scikit_learn(estimator, check):
    """Each of its checks; none is excluded. It skips by itself what needs pandas or another kind of array."""
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    """Rows and classes to fit on, and others to test on."""
    rows, y = load_digits(return_X_y=True)
    return train_test_split(rows, y, test_size=0.3, random_state=0)


@pytest.fixture(scope="module")
def trained(digits):
    """A weak edge, and a good function of a row, that were fitted before."""
    rows, _, y, _ = digits
    edge, large = GaussianNB().fit(rows[:300], y[:300]), SVC().fit(rows[:300], y[:300])
    return FrozenEstimator(edge), lambda row: int(large.predict([row])[0])


def test_a_guarantee(digits, trained):
    """What the edge says alone is as seldom wrong as calibrated, and the cloud mends the rest."""
    rows, tests, y, right = digits
    edge, cloud = trained
    model = RoutedClassifier(edge, cloud, max_loss=0.1).fit(rows[300:600], y[300:600])
    assert model.certificate_.n == 300
    assert 0 < model.certificate_.deferral_rate < 1
    assert model.score(tests, right) > edge.score(tests, right) + 0.02
    probabilities = model.predict_proba(tests)
    assert np.allclose(probabilities.sum(1), 1)
    assert (model.classes_[probabilities.argmax(1)] == model.predict(tests)).all()


def test_a_search_over_the_share_that_is_deferred(digits):
    """By scikit-learn's search, which clones it: with more deferrals it is right more often."""
    rows, _, y, _ = digits
    model = RoutedClassifier(GaussianNB(), SVC(), max_defer=0.1, sure=None, random_state=0)
    search = GridSearchCV(model, {"max_defer": [0.02, 0.6], "edge__var_smoothing": [1e-9]}, cv=2, refit=False)
    few, many = search.fit(rows[:400], y[:400]).cv_results_["mean_test_score"]
    assert many > few


def test_an_address_as_the_cloud(digits, trained):
    """A server's labels are classes, also as texts; one that is none is an error."""
    rows, tests, y, _ = digits
    with CannedServer(http_reply(b'{"value": "7"}')) as server:
        cloud = PlainJson(f"http://127.0.0.1:{server.port}")
        model = clone(RoutedClassifier(trained[0], cloud, max_error=0.3)).fit(rows[300:400], y[300:400])
        assert defer_all(model).predict(tests[:1]).tolist() == [7]
    with CannedServer(http_reply(b'{"value": "cat"}')) as server:
        model.cloud_ = PlainJson(f"http://127.0.0.1:{server.port}")
        with pytest.raises(ValueError, match="no class"):
            model.predict(tests[:1])


class Scaled(GaussianNB):
    """One whose probabilities do not sum to 1, as one-against-all ones do not."""

    def predict_proba(self, rows):
        """Return less than the probabilities."""
        return super().predict_proba(rows) * 0.8


def test_a_cloud_whose_probabilities_do_not_sum_to_1(digits, trained):
    """Its class is the most likely one."""
    rows, tests, y, _ = digits
    model = defer_all(RoutedClassifier(trained[0], Scaled(), max_defer=0.2).fit(rows[300:400], y[300:400]))
    assert (model.predict(tests[:9]) == model.cloud_.predict(tests[:9])).all()


def test_a_side_with_a_threshold_of_its_own(digits):
    """Its classes are what it predicts, as the guarantee counts them; its probabilities stay where they say the same."""
    rows, tests, y, _ = digits
    own = FixedThresholdClassifier(LogisticRegression(C=1e-5), threshold=0.7, response_method="predict_proba")
    for place, sides in enumerate([(own, GaussianNB()), (GaussianNB(), own)]):
        model = RoutedClassifier(*sides, max_defer=0.5, sure=None, random_state=0).fit(rows[:600], y[:600] > 4)
        model.certificate_ = model.certificate_._replace(threshold=(0.0, inf)[place])
        side = (model.edge_, model.cloud_)[place]
        p, ours, expected = model.predict_proba(tests), side.predict_proba(tests), side.predict(tests)
        assert (model.predict(tests) == expected).all()
        agreed = expected == side.classes_[ours.argmax(1)]
        assert 0 < agreed.mean() < 1
        assert np.allclose(p[agreed], ours[agreed])


def test_a_cloud_that_fails(digits, trained):
    """A calibration against it fails; a prediction warns, and is the edge's. Limits of the router hold in both."""
    rows, tests, y, _ = digits
    edge, calls = trained[0], []

    def fails(row):
        calls.append(row)
        raise ConnectionError

    with pytest.raises(NoAnswer):
        RoutedClassifier(edge, fails, max_loss=0.1).fit(rows[300:400], y[300:400])
    model = RoutedClassifier(edge, fails, max_defer=0.2).fit(rows[300:400], y[300:400])
    assert calls
    calls.clear()
    defer_all(model).set_params(options={"limits": Limits(calls_per_minute=0)})
    with pytest.warns(UserWarning, match="did not answer 3 of 3 rows"):
        assert (model.predict(tests[:3]) == edge.predict(tests[:3])).all()
    assert not calls


def test_what_cannot_be_calibrated(digits, trained):
    """Too few rows, several guarantees, and classes that the router takes for one."""
    rows, _, y, _ = digits
    edge, cloud = trained
    with pytest.raises(NotEnough):
        RoutedClassifier(edge, cloud, max_error=0.01).fit(rows[:50], y[:50])
    with pytest.raises(ValueError, match="exactly one"):
        RoutedClassifier(edge, cloud, max_error=0.1, max_loss=0.1).fit(rows[:50], y[:50])
    with pytest.raises(ValueError, match="case"):
        RoutedClassifier(GaussianNB(), SVC(), max_error=0.1).fit(rows[:50], np.where(y[:50] > 4, "a", "A"))
