"""Scripts of textbooks for Keras run when the names of the packages are changed, and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nervure as nv
import numpy as np
import pytest

XOR = """
import numpy as np
from {keras}.models import Sequential
from {keras}.layers import Dense

X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
y = np.array([0, 1, 1, 0])

model = Sequential()
model.add(Dense(8, input_dim=2, activation='relu', kernel_initializer='he_uniform'))
model.add(Dense(1, activation='sigmoid'))
model.compile(loss='binary_crossentropy', optimizer='adam', metrics=['accuracy'])
model.summary()
model.fit(X, y, epochs=600, batch_size=4, verbose=0)

scores = model.evaluate(X, y, verbose=0)
print("%s: %.2f%%" % (model.metrics_names[1], scores[1] * 100))
print((model.predict(X) > 0.5).astype(int).tolist())
"""

DIGITS = """
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from {keras}.models import Sequential
from {keras}.layers import Dense, Dropout, Input
from {keras}.losses import CategoricalCrossentropy
from {keras}.optimizers import Adam
from {keras}.callbacks import EarlyStopping
from {keras}.utils import to_categorical

digits = load_digits()
x_train, x_test, y_train, y_test = train_test_split(digits.data / 16.0, digits.target, random_state=0)
y_train, y_test = to_categorical(y_train, 10), to_categorical(y_test, 10)

model = Sequential([
    Input(shape=(64,)),
    Dense(128, activation='relu'),
    Dropout(0.2),
    Dense(10, activation='softmax'),
])
model.compile(optimizer=Adam(learning_rate=0.003), loss=CategoricalCrossentropy(), metrics=['accuracy'])
stop = EarlyStopping(monitor='val_loss', patience=5, restore_best_weights=True)
history = model.fit(x_train, y_train, batch_size=32, epochs=30, validation_split=0.1, callbacks=[stop], verbose=2)

test_loss, test_acc = model.evaluate(x_test, y_test, verbose=0)
print('Test accuracy:', test_acc)
print('epochs', len(history.history['val_accuracy']), model.predict(x_test[:5]).shape)
"""


def said(script: str, folder: Path, change: str = "nervure") -> str:
    (folder / "script.py").write_text(script.replace("{keras}", change))
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_xor(tmp_path: Path) -> None:
    text = said(XOR, tmp_path)
    assert 'Sequential: "sequential"' in text and "Total params: 33" in text
    assert "accuracy: 100.00%" in text and "[[0], [1], [1], [0]]" in text


def test_xor_from_the_package_itself(tmp_path: Path) -> None:
    """``from nervure import Sequential`` as well."""
    text = said(XOR.replace("from {keras}.models", "from nervure"), tmp_path)
    assert "accuracy: 100.00%" in text


@pytest.mark.slow
def test_digits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    text = said(DIGITS, tmp_path)
    assert float(re.search(r"Test accuracy: ([\d.]+)", text)[1]) >= 0.97
    assert "(5, 10)" in text and "val_accuracy" in text


def test_names_are_the_same_wherever_they_are_imported_from() -> None:
    from nervure import losses, models, optimizers

    assert models.Sequential is nv.Sequential
    assert optimizers.Adam is nv.optimizers.Adam and losses.MeanSquaredError is nv.losses.MeanSquaredError


def test_to_categorical() -> None:
    from nervure.utils import to_categorical

    np.testing.assert_array_equal(to_categorical([[2], [0]]), [[0, 0, 1], [1, 0, 0]])
    assert to_categorical(np.zeros((3, 2), int), 4).shape == (3, 2, 4)
    assert to_categorical([], 3).shape == (0, 3)
    for wrong, match in (([0, 3], "from 0 to 3"), ([-1, 0], "from -1"), ([0.5], "whole")):
        with pytest.raises(nv.NervureError, match=match):
            to_categorical(wrong, 3)
