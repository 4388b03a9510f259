"""What requests hold and answers give, as the OpenAPI description shows it.

Only requests are validated by these; answers are written straight from arrays, since a list of floats needs no check.
How many items, characters and bytes are taken is the server's setting, checked in `inputs`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, StringConstraints, WithJsonSchema

# A picture of 8 x 8 pixels.
DOT = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFUlEQVR42mM8YaPBgA0wMeAAg1MCAO+wATws8x7vAAAAAElFTkSuQmCC"
)

# A NUL is no character of any text, and ends one for many a program.
Text = Annotated[
    str, StringConstraints(min_length=1, pattern=r"^[^\x00]+$"), Field(examples=["a fracture of the radius"])
]
_IMAGE = {
    "type": "string",
    "minLength": 1,
    "description": "Base64, a data URI, or the address of a picture on a host the server allows.",
    "examples": [DOT],
}
# Bytes are a form's uploaded file; JSON has none.
Image = Annotated[Annotated[str, StringConstraints(min_length=1)] | Annotated[bytes, Strict()], WithJsonSchema(_IMAGE)]
Label = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\x00]+$"), Field(examples=["fracture"])]
Template = Annotated[
    str,
    StringConstraints(min_length=2, pattern=r"^[^\x00]*\{\}[^\x00]*$"),
    Field(description="A prompt with {} for the label.", examples=["a photo of {}."]),
]
Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:/-]{1,200}$"), Field(examples=["scan-17"])]
ModelName = Annotated[
    str | None, Field(default=None, description="The served model's name; anything else is refused.", examples=[None])
]


class Request(BaseModel):
    """Unknown fields are refused: a misspelt option must not pass unnoticed."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class TextInput(Request):
    text: Text


class ImageInput(Request):
    image: Image


class EmbeddingsRequest(BaseModel):
    """As OpenAI's, with pictures besides texts; fields that only mean something there are ignored."""

    model_config = ConfigDict(
        extra="ignore",
        allow_inf_nan=False,
        json_schema_extra={
            "examples": [
                {"input": "a fracture of the radius"},
                {"input": ["a healthy wrist", {"image": DOT}], "encoding_format": "base64"},
            ]
        },
    )
    input: (
        Text
        | TextInput
        | ImageInput
        | Annotated[
            list[Text | TextInput | ImageInput],
            Field(min_length=1, description="Texts and pictures in any order."),
        ]
    )
    model: ModelName
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int | None, Field(default=None, ge=1, description="Only the model's own are given.")]
    user: str | None = None


class SimilarityRequest(Request):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"images": [DOT], "texts": ["a healthy wrist", "a fracture"]}]}
    )
    images: Annotated[list[Image], Field(min_length=1)]
    texts: Annotated[list[Text], Field(min_length=1)]
    mode: Annotated[
        Literal["matrix", "pairs"],
        Field(description="Every image with every text, or the first with the first and so on."),
    ] = "matrix"
    model: ModelName


class Pair(Request):
    image: Image
    text: Text


class PairsRequest(Request):
    """Pairs whose bad members fail alone."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"pairs": [{"image": DOT, "text": "a healthy wrist"}]}]})
    pairs: Annotated[list[Pair], Field(min_length=1)]
    model: ModelName


class ClassifyRequest(Request):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"images": [DOT], "labels": ["fracture", "no fracture"], "templates": ["an x-ray of {}"]}]
        }
    )
    images: Annotated[list[Image], Field(min_length=1)]
    labels: Annotated[list[Label] | None, Field(default=None, min_length=1, description="Default: the domain's.")]
    templates: Annotated[
        list[Template] | None, Field(default=None, min_length=1, description="Default: the domain's prompts.")
    ]
    model: ModelName


class SearchRequest(Request):
    """One query, a text or an image."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": "a fracture of the radius", "k": 5}]})
    text: Annotated[Text | None, Field(default=None)]
    image: Annotated[Image | None, Field(default=None)]
    k: Annotated[int, Field(ge=1, le=1000)] = 10
    model: ModelName


class GalleryItem(Request):
    id: Identifier
    image: Image
    metadata: Annotated[dict[str, str | int | float | bool | None], Field(max_length=32)] = {}


class GalleryAddRequest(Request):
    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [{"id": "scan-17", "image": DOT}]}]})
    items: Annotated[list[GalleryItem], Field(min_length=1)]


class GalleryRemoveRequest(Request):
    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": ["scan-17"]}]})
    ids: Annotated[list[Identifier], Field(min_length=1)]


class ReloadRequest(Request):
    """What to load; by default the server's own model again, at the alias' present version."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}, {"version": "3"}]})
    version: Annotated[
        str | None,
        StringConstraints(pattern=r"^\d{1,9}$"),
        Field(default=None, description="Of the registered model."),
    ]


REQUESTS = (
    EmbeddingsRequest,
    SimilarityRequest,
    PairsRequest,
    ClassifyRequest,
    SearchRequest,
    GalleryAddRequest,
    GalleryRemoveRequest,
    ReloadRequest,
)


class ErrorDetails(BaseModel):
    message: str
    type: str
    code: str | None = None
    param: str | None = None


class ErrorResponse(BaseModel):
    """What every refusal holds."""

    error: ErrorDetails


class Embedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: Annotated[list[float] | str, Field(description="Numbers, or base64 of little-endian float32.")]


class EmbeddingsResponse(BaseModel):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: dict[str, int]


class SimilarityResponse(BaseModel):
    similarity: Annotated[list[list[float]] | list[float], Field(description="(m, n), or (n,) for pairs.")]
    model: str


class PairScore(BaseModel):
    index: int
    score: float | None
    error: ErrorDetails | None


class PairsResponse(BaseModel):
    results: list[PairScore]
    model: str


class Classification(BaseModel):
    index: int
    label: Annotated[str, Field(description="The likeliest.")]
    probabilities: Annotated[list[float], Field(description="In the order of labels.")]


class ClassifyResponse(BaseModel):
    labels: list[str]
    results: list[Classification]
    calibrated: Annotated[bool, Field(description="Whether the temperature was fitted to held-out pairs.")]
    model: str


class Hit(BaseModel):
    id: str
    score: float
    metadata: dict[str, Any]


class SearchResponse(BaseModel):
    hits: list[Hit]
    size: int
    model: str


class GalleryResponse(BaseModel):
    size: int
    added: int = 0
    removed: int = 0


class StateResponse(BaseModel):
    status: str
