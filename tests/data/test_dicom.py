"""DICOM files written with pydicom and read back windowed."""

import json

import numpy as np
import pytest

from hf_clip_domain.data.images import decode_image
from hf_clip_domain.data.loading import load_pairs

pydicom = pytest.importorskip("pydicom")


def write(path, values, **attributes):
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.Rows, file.Columns = values.shape
    file.SamplesPerPixel, file.BitsAllocated, file.BitsStored, file.HighBit = 1, 16, 16, 15
    file.PixelRepresentation = 1
    file.PhotometricInterpretation = "MONOCHROME2"
    for name, value in attributes.items():
        setattr(file, name, value)
    file.PixelData = values.astype("<i2").tobytes()
    file.save_as(path, enforce_file_format=True)
    return path


RAMP = np.tile(np.arange(-200, 312, 4), (16, 1))  # (16, 128)


def test_the_files_own_window_and_rescale_are_used(tmp_path):
    path = write(
        tmp_path / "scan.dcm", RAMP + 1024, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400
    )
    found = np.asarray(decode_image(path))[0, :, 0].astype(float)
    expected = (np.clip((RAMP[0] - (40 - 0.5 - 199.5)) / 399, 0, 1) * 255).round()
    assert np.abs(found - expected).max() <= 1
    assert np.array_equal(np.asarray(decode_image(path.read_bytes())), np.asarray(decode_image(path)))


def test_several_windows_none_and_inverted(tmp_path):
    several = write(tmp_path / "a.dcm", RAMP, WindowCenter=[40, 300], WindowWidth=[400, 50])
    one = write(tmp_path / "b.dcm", RAMP, WindowCenter=40, WindowWidth=400)
    assert np.array_equal(np.asarray(decode_image(several)), np.asarray(decode_image(one)))
    plain = np.asarray(decode_image(write(tmp_path / "c.dcm", RAMP)))[0, :, 0]
    assert plain[0] == 0 and plain[-1] == 255
    inverted = write(tmp_path / "d.dcm", RAMP, PhotometricInterpretation="MONOCHROME1")
    assert np.abs(np.asarray(decode_image(inverted))[0, :, 0].astype(int) - (255 - plain)).max() <= 1


def test_pairs_of_dicom_files(tmp_path):
    rows = []
    for index in range(6):
        write(tmp_path / f"{index}.dcm", RAMP + index * 10, WindowCenter=40, WindowWidth=400)
        rows.append(json.dumps({"image": f"{index}.dcm", "report": f"scan {index}"}))
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    splits = load_pairs(tmp_path / "pairs.jsonl")
    assert sum(map(len, splits.values())) == 6
