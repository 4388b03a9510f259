"""DICOM files written with pydicom and read back windowed."""

import json

import numpy as np
import pytest

from hf_clip_domain.data.images import decode_image
from hf_clip_domain.data.loading import load_pairs
from hf_clip_domain.errors import ClipDomainError

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


def test_elements_left_empty_count_as_absent(tmp_path):
    empty = dict.fromkeys(("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"))
    found, plain = write(tmp_path / "a.dcm", RAMP, **empty), write(tmp_path / "b.dcm", RAMP)
    assert np.array_equal(np.asarray(decode_image(found)), np.asarray(decode_image(plain)))


@pytest.mark.parametrize("kind", ["RGB", "YBR_FULL"])
def test_colours_are_converted_once(tmp_path, kind):
    colour = np.full((8, 8, 3), (200, 30, 0), np.uint8)
    stored = colour if kind == "RGB" else pydicom.pixels.convert_color_space(colour, "RGB", kind)
    path = write(tmp_path / "a.dcm", RAMP)
    file = pydicom.dcmread(path)
    file.Rows, file.Columns, file.SamplesPerPixel, file.PlanarConfiguration = 8, 8, 3, 0
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 8, 8, 7, 0
    file.PhotometricInterpretation, file.PixelData = kind, stored.tobytes()
    file.save_as(path)
    assert np.abs(np.asarray(decode_image(path), int) - colour).max() <= 2


def test_the_first_of_several_frames(tmp_path):
    path = write(tmp_path / "a.dcm", RAMP)
    plain = np.asarray(decode_image(path))
    file = pydicom.dcmread(path)
    file.NumberOfFrames, file.PixelData = 2, file.PixelData + bytes(len(file.PixelData))
    file.save_as(path)
    assert np.array_equal(np.asarray(decode_image(path)), plain)


def test_damage_is_one_sentence(tmp_path):
    path = write(tmp_path / "cut.dcm", RAMP)
    content = path.read_bytes()
    for damaged in (b"", b"junk" * 100, content[:200], content[:400], content[:-50]):
        path.write_bytes(damaged)
        with pytest.raises(ClipDomainError, match="cut.dcm: "):
            decode_image(path)


def test_a_file_without_preamble_is_read(tmp_path):
    path = write(tmp_path / "a.dcm", RAMP)
    plain = np.asarray(decode_image(path))
    file = pydicom.dcmread(path)
    bare = pydicom.dataset.Dataset({element.tag: element for element in file})
    bare.save_as(path, implicit_vr=True, little_endian=True)
    assert path.read_bytes()[128:132] != b"DICM"
    assert np.array_equal(np.asarray(decode_image(path)), plain)


def test_an_absurdly_large_file_is_refused_by_its_header(tmp_path):
    path = write(tmp_path / "huge.dcm", RAMP)
    file = pydicom.dcmread(path)
    file.Rows = file.Columns = 30_000
    file.save_as(path)
    with pytest.raises(ClipDomainError, match="huge.dcm: 30,000 x 30,000 pixels"):
        decode_image(path)
