"""`edgeroute.sklearn.RoutedClassifier`: scikit-learn's own suite, and its tools on a classifier that is a router."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import pickle
import sqlite3
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from math import inf

import numpy as np
import pytest
from both import LONG, wait_for
from lazily import Later, needs

from edgeroute import Egress, Function, Limits, MayNotLeave, NoAnswer, PlainJson
from edgeroute.confidence import NotEnough
from edgeroute.core.endpoint_breaker_and_limits import FAULTS
from edgeroute.testing import CannedServer, http_reply

needs("sklearn")
pytestmark = pytest.mark.filterwarnings("ignore:the cloud did not answer:UserWarning")
base, checks, datasets, frozen, ours = (
    Later(name)
    for name in ("sklearn.base", "sklearn.utils.estimator_checks", "sklearn.datasets", "sklearn.frozen", "edgeroute.sklearn")
)
ensemble, linear_model, model_selection = (Later(f"sklearn.{name}") for name in ("ensemble", "linear_model", "model_selection"))
naive_bayes, svm, joblib = Later("sklearn.naive_bayes"), Later("sklearn.svm"), Later("joblib")


def defer_all(model):
    """Has a fitted model ask its cloud about each row."""
    model.certificate_ = model.certificate_._replace(threshold=inf)
    return model


@pytest.mark.slow
def test_the_suite_of_scikit_learn():
    """Each of its checks; none is excluded. It skips by itself what needs pandas or another kind of array."""
    sides = linear_model.LogisticRegression(), naive_bayes.GaussianNB()
    told = checks.check_estimator(ours.RoutedClassifier(*sides, max_defer=0.5, sure=None, random_state=0), on_skip=None)
    assert {check["status"] for check in told} <= {"passed", "skipped"}
    assert sum(check["status"] == "passed" for check in told) > 40


@pytest.fixture(scope="module")
def digits():
    """Rows and classes to fit on, and others to test on."""
    rows, y = datasets.load_digits(return_X_y=True)
    return model_selection.train_test_split(rows, y, test_size=0.3, random_state=0)


@pytest.fixture(scope="module")
def trained(digits):
    """A weak edge, and a good function of a row, that were fitted before."""
    rows, _, y, _ = digits
    edge, large = naive_bayes.GaussianNB().fit(rows[:300], y[:300]), svm.SVC().fit(rows[:300], y[:300])
    return frozen.FrozenEstimator(edge), lambda row: int(large.predict([row])[0])


def test_a_guarantee(digits, trained):
    """What the edge says alone is as seldom wrong as calibrated, and the cloud mends the rest."""
    rows, tests, y, right = digits
    edge, cloud = trained
    model = ours.RoutedClassifier(edge, cloud, max_loss=0.1).fit(rows[300:600], y[300:600])
    assert model.certificate_.n == 300
    assert 0 < model.certificate_.deferral_rate < 1
    assert model.score(tests, right) > edge.score(tests, right) + 0.02
    probabilities = model.predict_proba(tests)
    assert np.allclose(probabilities.sum(1), 1)
    assert (model.classes_[probabilities.argmax(1)] == model.predict(tests)).all()


def test_a_search_over_the_share_that_is_deferred(digits):
    """By scikit-learn's search, which clones it: with more deferrals it is right more often."""
    rows, _, y, _ = digits
    model = ours.RoutedClassifier(naive_bayes.GaussianNB(), svm.SVC(), max_defer=0.1, sure=None, random_state=0)
    search = model_selection.GridSearchCV(model, {"max_defer": [0.02, 0.6], "edge__var_smoothing": [1e-9]}, cv=2, refit=False)
    few, many = search.fit(rows[:400], y[:400]).cv_results_["mean_test_score"]
    assert many > few


def test_an_address_as_the_cloud(digits, trained):
    """A server's labels are classes, also as texts; one that is none is an error."""
    rows, tests, y, _ = digits
    with CannedServer(http_reply(b'{"value": "7"}')) as server:
        cloud = PlainJson(f"http://127.0.0.1:{server.port}")
        model = base.clone(ours.RoutedClassifier(trained[0], cloud, max_error=0.3)).fit(rows[300:400], y[300:400])
        assert defer_all(model).predict(tests[:1]).tolist() == [7]
    with CannedServer(http_reply(b'{"value": "cat"}')) as server:
        model.cloud_ = PlainJson(f"http://127.0.0.1:{server.port}")
        with pytest.raises(ValueError, match="no class"):
            model.predict(tests[:1])


def test_a_cloud_whose_probabilities_do_not_sum_to_1(digits, trained):
    """Its class is the most likely one."""
    rows, tests, y, _ = digits

    class Scaled(naive_bayes.GaussianNB):
        """One whose probabilities do not sum to 1, as one-against-all ones do not."""

        def predict_proba(self, rows):
            """Return less than the probabilities."""
            return super().predict_proba(rows) * 0.8

    model = defer_all(ours.RoutedClassifier(trained[0], Scaled(), max_defer=0.2).fit(rows[300:400], y[300:400]))
    assert (model.predict(tests[:9]) == model.cloud_.predict(tests[:9])).all()


def test_a_side_with_a_threshold_of_its_own(digits):
    """Its classes are what it predicts, as the guarantee counts them; its probabilities stay where they say the same."""
    rows, tests, y, _ = digits
    own = model_selection.FixedThresholdClassifier(
        linear_model.LogisticRegression(C=1e-5), threshold=0.7, response_method="predict_proba"
    )
    for place, sides in enumerate([(own, naive_bayes.GaussianNB()), (naive_bayes.GaussianNB(), own)]):
        model = ours.RoutedClassifier(*sides, max_defer=0.5, sure=None, random_state=0).fit(rows[:600], y[:600] > 4)
        model.certificate_ = model.certificate_._replace(threshold=(0.0, inf)[place])
        side = (model.edge_, model.cloud_)[place]
        p, own_p, expected = model.predict_proba(tests), side.predict_proba(tests), side.predict(tests)
        assert (model.predict(tests) == expected).all()
        agreed = expected == side.classes_[own_p.argmax(1)]
        assert 0 < agreed.mean() < 1
        assert np.allclose(p[agreed], own_p[agreed])


def test_a_cloud_that_fails(digits, trained):
    """A calibration against it fails; a prediction warns, and is the edge's. Limits of the router hold in both."""
    rows, tests, y, _ = digits
    edge, calls = trained[0], []

    def fails(row):
        calls.append(row)
        raise ConnectionError

    with pytest.raises(NoAnswer):
        ours.RoutedClassifier(edge, fails, max_loss=0.1).fit(rows[300:400], y[300:400])
    model = ours.RoutedClassifier(edge, fails, max_defer=0.2).fit(rows[300:400], y[300:400])
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
        ours.RoutedClassifier(edge, cloud, max_error=0.01).fit(rows[:50], y[:50])
    with pytest.raises(ValueError, match="exactly one"):
        ours.RoutedClassifier(edge, cloud, max_error=0.1, max_loss=0.1).fit(rows[:50], y[:50])
    for one, other, why in (
        ("a", "A", "case"),
        ("1", "1.0", "a fraction of 0"),
        ("b", "b.", "full stop"),
        ("c", "'c'", "quotes"),
    ):
        with pytest.raises(ValueError, match=f"classes .*{other}.* are one label .*{why}"):
            ours.RoutedClassifier(naive_bayes.GaussianNB(), svm.SVC(), max_error=0.1).fit(
                rows[:50], np.where(y[:50] > 4, one, other)
            )


def test_missing_values(digits):
    """Are allowed where both sides allow them, a function among them, and refused where one does not."""
    rows, tests, y, _ = (part.copy() for part in digits)
    rows[::7, 3] = tests[::7, 3] = np.nan
    takes, large = ensemble.HistGradientBoostingClassifier(max_iter=2), ensemble.HistGradientBoostingClassifier(max_iter=4)
    trained = frozen.FrozenEstimator(base.clone(large).fit(rows[:300], y[:300] % 2))
    guarantee = {"max_defer": 0.3, "sure": None, "random_state": 0}
    for cloud in (large, trained, lambda row: trained.predict([row])[0]):
        model = ours.RoutedClassifier(takes, cloud, **guarantee).fit(rows[:300], y[:300] % 2)
        right = model.cloud_.predict(tests[:8]) if hasattr(model.cloud_, "predict") else [*map(cloud, tests[:8])]
        assert defer_all(model).predict(tests[:8]).tolist() == list(right)
    for sides in ((takes, naive_bayes.GaussianNB()), (naive_bayes.GaussianNB(), takes)):
        with pytest.raises(ValueError, match="NaN"):
            ours.RoutedClassifier(*sides, **guarantee).fit(rows[:300], y[:300] % 2)


def answered(model, tests, times):
    """How many rows the cloud answered, of so many predictions of one row each."""
    return [model.predict(tests[i : i + 1])[0] for i in range(times)].count("cloud")


@pytest.fixture
def limited(digits):
    """A classifier that may ask its cloud three times, whose answers are of a class that the edge never gives."""
    rows, _, y, _ = digits
    y = np.where(y > 4, "high", "low").astype(object)
    edge = frozen.FrozenEstimator(naive_bayes.GaussianNB().fit(rows[:300], y[:300].astype(str)))
    y[300] = "cloud"
    model = ours.RoutedClassifier(edge, Function(answer_cloud), max_defer=0.5, options={"limits": Limits(calls_per_minute=3)})
    return defer_all(model.fit(rows[300:400], y[300:400].astype(str)))


def answer_cloud(row):
    return "cloud"


def test_a_limit_is_of_all_predictions(limited, digits):
    """Of one row each, of both kinds, and of threads at once; what the classifier is made of stays as it was."""
    _, tests, _, _ = digits
    before = dict(vars(limited))
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda i: answered(limited, tests[i:], 5), range(8))) == 3
    assert answered(limited, tests, 5) == 0
    assert vars(limited) == before
    limited.set_params(options={"limits": Limits(calls_per_minute=2)})  # in force with the next prediction
    assert answered(limited, tests, 5) == 2
    limited.options["limits"] = Limits(calls_per_minute=1)
    assert answered(limited, tests, 5) == 1


def by_joblib(model):
    """Through a file of joblib."""
    file = BytesIO()
    joblib.dump(model, file)
    return joblib.load(BytesIO(file.getvalue()))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), by_joblib])
def test_a_copy_has_a_router_of_its_own(limited, digits, copied):
    """Before and after a prediction; none is in a pickle, whose size does not change, nor in a clone."""
    _, tests, _, _ = digits
    size = len(pickle.dumps(limited))
    assert answered(limited, tests, 5) == 3
    assert len(pickle.dumps(limited)) == size
    other = copied(limited)
    assert answered(other, tests, 5) == 3
    assert answered(limited, tests, 5) == 0
    assert not [name for name in vars(base.clone(limited)) if name.startswith("_")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_forked_child_goes_on(limited, digits):
    """Also where another thread of the parent has the lock: with the parent's count, which what it asks itself does not change."""
    _, tests, _, _ = digits
    assert answered(limited, tests, 1) == 1
    lock = limited._kept._lock  # private: held by this thread, which the child of the other one lacks
    with lock, ThreadPoolExecutor(1) as pool:

        def forked():
            if not (child := os.fork()):
                os._exit(answered(limited, tests, 5))
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        assert pool.submit(forked).result(LONG) == 2
    assert answered(limited, tests, 5) == 2


def test_the_breaker_is_of_all_predictions(limited, digits):
    """A cloud that is away is left alone after as many calls as open it."""
    _, tests, _, _ = digits
    calls = []

    def away(row):
        calls.append(row)
        raise ConnectionError

    limited.cloud_ = away
    limited.set_params(options=None)
    assert answered(limited, tests, 5 * FAULTS) == 0
    assert len(calls) == FAULTS


@pytest.fixture
def routers(monkeypatch):
    """The engines of the routers that classifiers make, in order."""
    made, make = [], ours.Router

    def record(*args, **options):
        router = make(*args, **options)
        made.append(router.engine)
        return router

    monkeypatch.setattr("edgeroute.sklearn.Router", record)
    return made


def test_a_router_that_nobody_needs_is_closed(limited, digits, routers):
    """By another fit, another setting, and with the last classifier that has it; without a warning that one was left open."""
    rows, tests, y, _ = digits

    def opened(model):
        answered(model, tests, 1)
        return routers[-1]

    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        first = opened(limited)
        limited.fit(rows[300:400], np.where(y[300:400] > 4, "high", "low"))
        wait_for(lambda: first.closed)
        second = opened(limited)
        limited.set_params(options=None)
        third = opened(limited)
        wait_for(lambda: second.closed)
        assert not third.closed
        other = copy.deepcopy(limited)
        last = opened(other)
        del other
        gc.collect()
        wait_for(lambda: last.closed)


def test_predictions_go_on_as_the_router_is_replaced(limited, digits, routers):
    """By another fit or setting, in another thread: the router before is closed after them."""
    rows, tests, y, _ = digits
    asked, go = threading.Event(), threading.Event()

    def slow(row):
        asked.set()
        assert go.wait(LONG)
        return "cloud"

    labels = np.where(y[300:400] > 4, "high", "low").astype(object)
    labels[0] = "cloud"
    for replaced in (lambda: limited.set_params(options=None), lambda: limited.fit(rows[300:400], labels.astype(str))):
        asked.clear()
        go.clear()
        limited.cloud_ = slow
        with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as stack:
            stack.callback(go.set)
            begun = pool.submit(answered, limited, tests, ours.BATCH + 1)
            assert asked.wait(LONG)
            old = routers[-1]
            replaced()
            defer_all(limited).cloud_ = answer_cloud
            assert answered(limited, tests, 1) == 1
            assert not old.closed
            go.set()
            assert begun.result(LONG) > 0
        wait_for(lambda old=old: old.closed)


def test_a_script_that_ends(tmp_path):
    """Its answers are in the cache on disk, though nothing was closed."""
    program = (
        "import sys, numpy as np\n"
        "from sklearn.linear_model import LogisticRegression\n"
        "from edgeroute import Cache\n"
        "from edgeroute.sklearn import RoutedClassifier\n"
        "rows, y = np.arange(600.0).reshape(300, 2), np.arange(300) % 2\n"
        "options = {'cache': Cache(disk=sys.argv[1])}\n"
        "model = RoutedClassifier(LogisticRegression(), lambda row: int(row[0] / 2) % 2, max_defer=0.9, sure=None, options=options)\n"
        "model.fit(rows, y)\n"
        "model.certificate_ = model.certificate_._replace(threshold=float('inf'))\n"
        "assert (model.predict(rows) == y).all()\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "c.db")], timeout=LONG, check=True)
    with contextlib.closing(sqlite3.connect(tmp_path / "c.db")) as stored:
        assert stored.execute("SELECT count(*) FROM answers").fetchone() == (300,)


def test_rows_that_may_never_leave(digits, trained):
    """Whatever the guarantee, and whoever says so: `fit` says once that the cloud will not be asked, or cannot do without it."""
    rows, tests, y, _ = digits
    edge, calls = trained[0], []

    def cloud(row):
        calls.append(row)
        return 3

    def fitted(guarantee, **rules):
        model = ours.RoutedClassifier(edge, cloud, **guarantee, options={"egress": Egress(**rules)})
        return defer_all(model.fit(rows[300:400], y[300:400]))

    of_rows = {"data_class": lambda row: "a", "never_leave": ["a"], "may_leave": ["b"]}
    for rules, why in (({"never_leave": ["a"]}, "without data_class"), (of_rows, "data class 'a' never leaves")):
        for guarantee in ({"max_defer": 0.3}, {"max_error": 0.3}):
            with pytest.warns(UserWarning, match=f"cloud will never be asked, .*{why}") as told:
                found = fitted(guarantee, **rules).predict(tests[:9])
            assert len(told) == 1
            assert (found == edge.predict(tests[:9])).all()
        with pytest.raises(MayNotLeave, match=why):
            fitted({"max_loss": 0.3}, **rules)
    assert not calls
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of_rows["data_class"] = lambda row: "a" if row[20] > 5 else "b"
        asked = fitted({"max_defer": 0.3}, **of_rows).predict(tests[:9]) != edge.predict(tests[:9])
    assert calls
    assert not asked[tests[:9, 20] > 5].any()
