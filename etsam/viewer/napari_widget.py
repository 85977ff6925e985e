"""Widget for napari: segment a tomogram in a process of its own, move the threshold, clean up, correct, save.

Nothing of the segmentation runs in napari's process: it is `etsam predict` (`etsam.viewer.background`), so that the
mask is that of the command line, and a viewer that is closed does not stop it.
"""

import shlex
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from qtpy.QtCore import Qt, QTimer, Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QFormLayout,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QSlider,
    QVBoxLayout,
    QWidget,
)

from etsam.errors import EtsamError
from etsam.pictures import MEMBRANE
from etsam.postprocess.steps import InstanceLabels, RemoveThinNoise, SeverMisconnections, apply_steps
from etsam.prediction.record import OutputNames, read_record, threshold_of
from etsam.viewer.background import BackgroundRun
from etsam.viewer.correction import add_to_manifest, save_mask
from etsam.viewer.lazy_array import AboveThreshold
from etsam.viewer.napari_reader import layer_of, volume_of
from etsam.volume import read_volume, volume_writer

if TYPE_CHECKING:
    import napari

    from etsam.measure.measure import Measurement

_POLL_MS = 400
_SLAB_SLICES = 15  # of a preview: as many as the memory of the networks spans
_STEPS_PER_LOGIT = 100  # of the threshold's slider
_RANGE = 10.0
_BETTER: dict[str, list[str]] = {
    "no, as quick as can be": [],
    "mirrored (4 times the time)": ["views=4"],
    "both directions (twice)": ["propagation=bidirectional"],
    "also from the sides (twice)": ["--better"],
}


class SegmentWidget(QWidget):
    """The panel.

    Parameters
    ----------
    napari_viewer
        By this name napari hands itself to a panel.
    """

    _measured = Signal(object)

    def __init__(self, napari_viewer: "napari.Viewer") -> None:
        super().__init__()
        self.viewer = viewer = napari_viewer
        self.run: BackgroundRun | None = None
        self._then: Callable[[OutputNames], None] | None = None
        self._slab = tempfile.TemporaryDirectory(prefix="etsam-preview-")
        self._view: AboveThreshold | None = None
        self._mask_layer: Any = None
        self._timer = QTimer(self)
        self._timer.setInterval(_POLL_MS)
        self._timer.timeout.connect(self._poll)
        self._worker = ThreadPoolExecutor(1)
        self.destroyed.connect(self._slab.cleanup)
        self._measured.connect(self._show_measured)
        self._build()
        viewer.layers.events.inserted.connect(self._list_layers)
        viewer.layers.events.removed.connect(self._list_layers)
        self._list_layers()

    def _build(self) -> None:
        self.tomogram, self.weights, self.clean, self.device = (QComboBox() for _ in range(4))
        self.weights.addItems(["auto", "etsam_v1", "nano"])
        self.clean.addItems(["none", "all", "thin_noise", "misconnections", "small_components"])
        self.device.addItems(["auto", "cpu", "gpu"])
        self.better = QComboBox()
        self.better.addItems(_BETTER)
        self.also = QLineEdit()
        self.also.setPlaceholderText("FILE of the other half map, or of another reconstruction")
        self.unsure = QCheckBox("uncertainty of each voxel")
        self.own_threshold = QLineEdit()
        self.own_threshold.setPlaceholderText("that of the weights; a number, or auto")
        self.lamella = QCheckBox("find the slab of sample; mark nothing outside")
        self.exclude = QComboBox()
        self.exclude.addItems(["nothing", "gold", "carbon", "border", "gold,carbon", "gold,carbon,border"])
        self.more = QLineEdit()
        self.more.setPlaceholderText("KEY=VALUE KEY=VALUE")
        self.folder = QLineEdit("results")
        self.replace = QCheckBox("replace outputs that exist")
        self.preview_button = self._button("Try this slice", self.preview)
        self.start_button = self._button("Segment", self.segment)
        self.cancel_button = self._button("Cancel", self.cancel)
        self.cancel_button.setEnabled(False)
        self.bar, self.told = QProgressBar(), QLabel()
        self.told.setWordWrap(True)
        self.told.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        form = QFormLayout()
        for word, field in (
            ("Tomogram", self.tomogram),
            ("Weights", self.weights),
            ("Threshold", self.own_threshold),
            ("Lamella", self.lamella),
            ("Exclude", self.exclude),
            ("Clean-up", self.clean),
            ("Better masks", self.better),
            ("Averaged with", self.also),
            ("", self.unsure),
            ("Device", self.device),
            ("More settings", self.more),
            ("Folder", self.folder),
            ("", self.replace),
        ):
            field.setAccessibleName(word or field.text())
            form.addRow(word, field)
        first = QGroupBox("Segment")
        inner = QVBoxLayout(first)
        inner.addLayout(form)
        inner.addLayout(_row(self.preview_button, self.start_button, self.cancel_button))
        inner.addWidget(self.bar)

        self.slider, self.threshold = QSlider(Qt.Orientation.Horizontal), QDoubleSpinBox()
        self.slider.setRange(int(-_RANGE * _STEPS_PER_LOGIT), int(_RANGE * _STEPS_PER_LOGIT))
        self.threshold.setRange(-_RANGE, _RANGE)
        self.threshold.setSingleStep(0.05)
        for field in (self.slider, self.threshold):
            field.setAccessibleName("threshold of the logits")
        self.slider.valueChanged.connect(lambda value: self.threshold.setValue(value / _STEPS_PER_LOGIT))
        self.threshold.valueChanged.connect(self._move_threshold)
        second = QGroupBox("Mask")
        inner = QVBoxLayout(second)
        inner.addWidget(QLabel("Threshold of the logits"))
        inner.addLayout(_row(self.slider, self.threshold))
        inner.addLayout(
            _row(
                self._button("Clean up", self.clean_up),
                self._button("Number membranes", self.number),
                self._button("Correct by hand", self.correct),
            )
        )
        self.measure_button = self._button("Measure membranes", self.measure)
        inner.addWidget(self.measure_button)
        inner.addWidget(self._button("Save mask…", self.save))
        self.split = QComboBox()
        self.split.setAccessibleName("what the tomogram is for")
        for word, split in (("to train by", "train"), ("to judge by", "val")):
            self.split.addItem(word, split)
        inner.addLayout(_row(self._button("Add to a training manifest…", self.add), self.split))
        whole = QVBoxLayout(self)
        whole.addWidget(first)
        whole.addWidget(second)
        whole.addWidget(self.told)
        whole.addStretch()

    def _button(self, text: str, action: Callable[[], Any]) -> QPushButton:
        """Button whose errors are told, not raised into Qt."""

        def pressed() -> None:
            try:
                action()
            except EtsamError as error:
                self.told.setText(str(error))

        button = QPushButton(text)
        button.clicked.connect(pressed)
        return button

    def _list_layers(self, event: Any = None) -> None:
        chosen = self.tomogram.currentText()
        images = [
            layer.name for layer in self.viewer.layers if layer.metadata.get("path") and layer._type_string == "image"
        ]
        self.tomogram.clear()
        self.tomogram.addItems(images)
        if chosen in images:
            self.tomogram.setCurrentText(chosen)

    def _layer(self) -> Any:
        name = self.tomogram.currentText()
        if not name:
            raise EtsamError("no tomogram is open; open one first (File > Open Files, reader etsam).")
        return self.viewer.layers[name]

    def arguments(self) -> list[str]:
        """Flags and settings of `etsam predict` that the fields stand for."""
        given = ["--store-logits", f"weights={self.weights.currentText()}"]
        given.append(f"postprocess={self.clean.currentText()}")
        if self.device.currentText() != "auto":
            given.append(f"trainer.accelerator={self.device.currentText()}")
        given += ["--lamella"] * self.lamella.isChecked()
        if self.exclude.currentText() != "nothing":
            given += ["--exclude", self.exclude.currentText()]
        given += _BETTER[self.better.currentText()]
        if self.unsure.isChecked():
            given.append("--uncertainty")
        if self.own_threshold.text().strip():
            given += ["--threshold", self.own_threshold.text().strip()]
        return [*given, *self.more.text().split()]

    def _all_arguments(self) -> list[str]:
        also = self.also.text().strip()
        given = [*self.arguments(), *(["--also", also] if also else [])]  # of a cut slab there is no other half
        return [*given, *(["--overwrite"] if self.replace.isChecked() else [])]

    def segment(self) -> BackgroundRun:
        """Segment the chosen tomogram; the layers come when it is done."""
        volume = volume_of(self._layer())
        assert volume.path is not None
        return self._start(BackgroundRun(volume.path, Path(self.folder.text()), self._all_arguments()), self._show)

    def preview(self) -> BackgroundRun:
        """Segment some slices around the one in sight, which is less sure than the whole, but quick."""
        layer = self._layer()
        volume = volume_of(layer)
        depth = volume.shape[0]
        here = round(float(layer.world_to_data(self.viewer.dims.point)[0]))
        first = max(0, min(here - _SLAB_SLICES // 2, depth - _SLAB_SLICES))
        last = min(depth, first + _SLAB_SLICES)
        path = Path(self._slab.name) / "slab.mrc"
        with volume_writer(path, (last - first, *volume.shape[1:]), volume.dtype, volume, True) as writer:
            for z in range(first, last):
                writer[z - first] = volume[z]

        def show(names: OutputNames) -> None:
            mask = np.zeros(volume.shape, np.uint8)
            cut = read_volume(
                names.post_processed_mask if names.post_processed_mask.exists() else names.mask, warn=False
            )
            for z in range(first, last):
                mask[z] = cut[z - first]
            self._labels(mask, "preview", layer, membrane=True)
            self.told.setText(f"preview of slices {first} to {last - 1}; with the whole tomogram it will be surer.")

        return self._start(BackgroundRun(path, Path(self._slab.name) / "out", [*self.arguments(), "--overwrite"]), show)

    def _start(self, run: BackgroundRun, then: Callable[[OutputNames], None]) -> BackgroundRun:
        if self.run is not None and self.run.running:
            raise EtsamError("a segmentation is at work; cancel it, or wait for its end.")
        self.run, self._then = run, then
        run.start()
        self.cancel_button.setEnabled(True)
        self.told.setText(f"at work; its log: {run.log}")
        self._timer.start()
        return run

    def cancel(self) -> None:
        """Stop the segmentation at work."""
        if self.run is not None:
            self.run.cancel()
            self._poll()

    def _poll(self) -> None:
        """Show how far the run is; when it has ended, its layers or its error."""
        run = self.run
        if run is None:
            return
        if run.running:
            progress = run.progress()
            self.bar.setValue(round(100 * progress.fraction))
            self.bar.setFormat(f"%p %  {progress}")
            return
        self._timer.stop()
        self.cancel_button.setEnabled(False)
        self.bar.reset()
        try:
            names = run.result()
            if names is None:
                self.told.setText("cancelled; nothing was kept of it.")
            elif self._then is not None:
                self._then(names)
        except EtsamError as error:
            self.told.setText(f"{error} (log: {run.log})")

    def _show(self, names: OutputNames) -> None:
        """Layers of a finished run: the logits, and the mask of the threshold, which can be moved."""
        record = read_record(names.record) or {}
        data, options, _ = layer_of(read_volume(names.logits, warn=False))
        logits = self.viewer.add_image(data, **options, visible=False)
        self._watch(logits, threshold_of(record))
        if names.uncertainty.exists():
            data, options, _ = layer_of(read_volume(names.uncertainty, warn=False))
            self.viewer.add_image(data, **{**options, "colormap": "inferno", "blending": "additive"}, visible=False)
        if names.post_processed_mask.exists():
            data, options, _ = layer_of(read_volume(names.post_processed_mask, warn=False))
            self.viewer.add_labels(data, **options)
            self._mask_layer.visible = False
        told = [f"{100 * record['membrane_share']:.2f} % membrane -> {names.mask}", *record.get("warnings", [])]
        self.told.setText("\n".join(map(str, told)))

    def _watch(self, logits: Any, threshold: float) -> None:
        """Lay the mask of a threshold over a layer of logits."""
        self._view = AboveThreshold(volume_of(logits), threshold)
        self._mask_layer = self._labels(self._view, f"{logits.name} above threshold", logits, membrane=True)
        self._mask_layer.editable = False
        self.threshold.setValue(threshold)

    def _labels(self, data: Any, name: str, like: Any, *, membrane: bool = False) -> Any:
        """Add labels where another layer lies; a mask in the blue of all pictures."""
        from napari.utils import DirectLabelColormap

        options = {"scale": like.scale, "translate": like.translate, "units": like.units, "opacity": 0.6}
        if membrane:
            options["colormap"] = DirectLabelColormap(color_dict={None: MEMBRANE, 0: "transparent"})
        return self.viewer.add_labels(data, name=name, metadata={"path": like.metadata.get("path")}, **options)

    def _move_threshold(self, value: float) -> None:
        self.slider.blockSignals(True)
        self.slider.setValue(round(value * _STEPS_PER_LOGIT))
        self.slider.blockSignals(False)
        if self._view is None:
            layer = self.viewer.layers.selection.active
            if layer is None or not layer.name.endswith("_logits"):
                return
            self._watch(layer, value)
            return
        self._view.threshold = value
        self._mask_layer.refresh(extent=False, thumbnail=False, highlight=False)  # a tenth of a redraw less

    def mask(self) -> np.ndarray:
        """Labels in sight, (Z, Y, X): those of the layer that is selected, else the mask of the threshold."""
        layer = self.viewer.layers.selection.active
        if layer is not None and layer._type_string == "labels":
            return np.asarray(layer.data)
        if self._view is None:
            raise EtsamError("there is no mask; segment a tomogram, or select a layer of labels.")
        return np.asarray(self._view)

    def clean_up(self) -> None:
        """Add the mask after the published post-processing as a layer."""
        cleaned = apply_steps((self.mask() > 0).astype(np.uint8), [RemoveThinNoise(), SeverMisconnections()])
        self._labels(
            np.stack([cleaned[z] for z in range(cleaned.shape[0])]), "cleaned mask", self._layer(), membrane=True
        )

    def number(self) -> None:
        """Add the connected membranes of the mask, numbered by size, as a layer."""
        labels = InstanceLabels()((self.mask() > 0).astype(np.uint8))
        self._labels(np.stack([labels[z] for z in range(labels.shape[0])]), "membranes", self._layer())

    def measure(self) -> "Future[Measurement]":
        """Measure the membranes of the mask in a thread; they come as numbered labels that carry the table."""
        from etsam.measure.measure import measure

        size = volume_of(self._layer()).voxel_size_angstrom
        if size is None or max(size) > 1.01 * min(size):
            raise EtsamError(f"measuring needs cubic voxels of known size; the file says {size} (z, y, x) in Å.")
        mask = (self.mask() > 0).astype(np.uint8)
        self.measure_button.setEnabled(False)
        self.told.setText("measuring; large masks take minutes")
        future = self._worker.submit(measure, mask, size[0] / 10)
        future.add_done_callback(lambda done: self._measured.emit((mask, done)))  # in napari's own thread
        return future

    def _show_measured(self, result: "tuple[np.ndarray, Future[Measurement]]") -> None:
        from etsam.measure.label_volume import label_volume

        mask, future = result
        self.measure_button.setEnabled(True)
        try:
            found = future.result()
        except EtsamError as error:
            self.told.setText(str(error))
            return
        labels = label_volume(mask, found.membranes)
        layer = self._labels(np.stack([labels[z] for z in range(len(mask))]), "measured membranes", self._layer())
        table = found.table.rename(columns={"membrane": "index"})
        layer.features = pd.concat([pd.DataFrame({"index": [0]}), table], ignore_index=True)  # shown under the pointer
        layer.metadata["table"] = found.table
        area = found.table["area_nm2"].sum() if len(found.table) else 0.0
        self.told.setText(f"{len(found.table)} membranes, {area:.0f} nm²; point at one for its values")

    def correct(self) -> Any:
        """Add the mask as labels that can be painted and erased."""
        return self._labels(np.array(self.mask() > 0, np.uint8), "corrected mask", self._layer())

    def save(self, path: str = "") -> None:
        """Save the mask in sight as MRC where the tomogram lies; asks for a name if none is given."""
        path = path or QFileDialog.getSaveFileName(self, "Save mask", "mask.mrc", "MRC (*.mrc)")[0]
        if path:  # the dialogue has asked whether a file may be replaced
            save_mask(Path(path), self.mask(), volume_of(self._layer()), overwrite=True)
            self.told.setText(f"saved: {path}")

    def add(self, manifest: str = "") -> None:
        """Save the mask in sight beside a manifest and add both to it, for `etsam finetune`; asks if none is given."""
        if not manifest:
            dialogue = QFileDialog(self, "Manifest, new or to be extended", "manifest.csv", "CSV (*.csv)")
            dialogue.setOption(QFileDialog.Option.DontConfirmOverwrite)  # it is extended, not replaced
            dialogue.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
            manifest = dialogue.selectedFiles()[0] if dialogue.exec() else ""
        if manifest:
            volume = volume_of(self._layer())
            mask = Path(manifest).parent / f"{self._layer().name}_corrected_mask.mrc"
            save_mask(mask, self.mask(), volume, overwrite=True)
            count = add_to_manifest(Path(manifest), volume, mask, self.split.currentData())
            lacking = [self.split.itemText(i) for i in range(2) if not count[self.split.itemData(i)]]
            then = f"add one {lacking[0]}, too" if lacking else f"train: etsam finetune {shlex.quote(manifest)}"
            self.told.setText(f"{manifest}: {count['train']} to train by, {count['val']} to judge by; {then}")


def _row(*widgets: QWidget) -> QHBoxLayout:
    row = QHBoxLayout()
    for widget in widgets:
        row.addWidget(widget)
    return row
