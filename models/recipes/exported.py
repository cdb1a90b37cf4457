"""Exports small models of scikit-learn, XGBoost and LightGBM as their users do, for the tests: `python exported.py FOLDER`.

Needs scikit-learn, skl2onnx, onnxmltools, xgboost and lightgbm (seen with 1.9.1, 1.20.0, 1.16.0, 3.2.0 and 4.7.0). `expected.json`
has what the original models answer to seven inputs.
"""

import json
import sys
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import xgboost
from onnxmltools import convert_lightgbm, convert_xgboost
from onnxmltools.convert.common.data_types import FloatTensorType
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
x, y = load_iris(return_X_y=True)
x, names = x.astype(np.float32), np.array(["setosa", "versicolor", "virginica"])[y]
rows = [0, 60, 70, 83, 120, 133, 149]
expected = {"inputs": x[rows].tolist()}


def linear() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))


def save(name: str, exported: Any, model: Any, columns: int = 4) -> None:
    (folder / f"{name}.onnx").write_bytes(exported.SerializeToString())
    given = x[rows][:, :columns]
    expected[name] = {"values": np.round(model.predict(given), 5).tolist() if columns < 4 else model.predict(given).tolist()}
    if columns == 4:
        expected[name]["confidences"] = [round(float(v), 5) for v in model.predict_proba(given).max(1)]


def sklearn(name: str, model: Any, columns: int = 4, **options: Any) -> None:
    save(name, to_onnx(model, x[:1, :columns], target_opset=17, options=options or None), model, columns)


numbers, texts = linear().fit(x, y), linear().fit(x, names)
sklearn("sk_zipmap", numbers)
sklearn("sk_plain", numbers, zipmap=False)
sklearn("sk_texts_zipmap", texts)
sklearn("sk_texts", texts, zipmap=False)
sklearn("sk_forest", RandomForestClassifier(5, max_depth=3, random_state=0).fit(x, y), zipmap=False)
sklearn("sk_binary", LogisticRegression(max_iter=200).fit(x[:100], y[:100]), zipmap=False)
sklearn("sk_mlp", MLPClassifier((4,), max_iter=300, random_state=0).fit(x, y), zipmap=False)
sklearn("sk_regression", LinearRegression().fit(x[:, :3], x[:, 3]), columns=3)
tensor = [("input", FloatTensorType([None, 4]))]
boosted = xgboost.XGBClassifier(n_estimators=3, max_depth=2).fit(x, y)
save("xgboost", convert_xgboost(boosted, initial_types=tensor, target_opset=15), boosted)
light = lightgbm.LGBMClassifier(n_estimators=3, max_depth=2, verbose=-1).fit(x, y)
save("lightgbm_zipmap", convert_lightgbm(light, initial_types=tensor, target_opset=15), light)
save("lightgbm", convert_lightgbm(light, initial_types=tensor, target_opset=15, zipmap=False), light)
(folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
