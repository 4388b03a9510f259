"""A missing package is one sentence that names the extra."""

import json

import pytest

from hf_clip_domain._optional import require
from hf_clip_domain.errors import ClipDomainError


def test_what_is_installed_is_imported():
    assert require("json", extra="any") is json


def test_what_is_missing_names_its_extra():
    with pytest.raises(ClipDomainError, match=r'pip install "hf-clip-domain\[dicom\]"'):
        require("a_package_that_nobody_has", extra="dicom")
