"""configs/quiz.json: the game's and the study's settings, one strict model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")]
Text = Annotated[str, Field(min_length=1, max_length=400)]
Label = Annotated[str, Field(min_length=1, max_length=60)]
Questions = Annotated[int, Field(ge=1, le=500)]


class Part(BaseModel):
    """What the models of this file share: unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Scale(Part):
    """One rating scale of the study, answered on every tile with 1 to `len(labels)`."""

    key: Name = Field(description="column of the export")
    question: Text = Field(description="shown above the scale")
    labels: list[Label] = Field(min_length=2, max_length=9, description="lowest to highest")


class StudyConfig(Part):
    """The reader study."""

    title: Text = Field(default="Reader study", description="heading of its pages")
    introduction: Text = Field(
        default="You will see one tissue tile at a time. Please rate each of them.",
        description="shown before the first tile",
    )
    questions: Questions = Field(default=60, description="tiles that every reader rates")
    seed: int = Field(default=99, description="chooses tiles and order, the same for all readers")
    balance: Literal["sources", "halves"] = Field(
        default="sources", description="sources: equally many of each; halves: half are real"
    )
    confidence: list[Label] = Field(
        min_length=5,
        max_length=5,
        default=[
            "Surely generated",
            "Probably generated",
            "Unsure",
            "Probably real",
            "Surely real",
        ],
        description="the five points, from generated to real",
    )
    scales: list[Scale] = Field(default=[], max_length=12, description="further rating scales")

    @model_validator(mode="after")
    def _keys_differ(self) -> StudyConfig:
        keys = [scale.key for scale in self.scales]
        if len(set(keys)) < len(keys):
            raise ValueError(f"scales: a key appears twice in {keys}")
        return self


class QuizConfig(Part):
    """configs/quiz.json."""

    title: Text = Field(default="Real or generated?", description="heading of the start page")
    question_counts: list[Questions] = Field(
        default=[12, 24], min_length=1, max_length=5, description="game lengths to choose from"
    )
    time_limit_s: Annotated[int, Field(ge=2, le=600)] = Field(
        default=10, description="s per question when a player switches the limit on"
    )
    tiles_per_group: Annotated[int, Field(ge=1, le=2000)] = Field(
        default=60, description="tiles kept of each source and tissue"
    )
    tile_px: Annotated[int, Field(ge=16, le=1024)] | None = Field(
        default=None, description="side of every tile, px; null: that of the smallest tile"
    )
    leaderboard_rows: Annotated[int, Field(ge=1, le=200)] = Field(
        default=20, description="players on the leaderboard"
    )
    starts_per_minute: Annotated[int, Field(ge=1)] = Field(
        default=600, description="games that one address may start in a minute"
    )
    admin_tries_per_minute: Annotated[int, Field(ge=1, le=60)] = Field(
        default=5, description="wrong admin tokens or invitations of one address in a minute"
    )
    https_only: bool = Field(
        default=False, description="true behind a proxy with TLS: cookies are sent over TLS only"
    )
    study: StudyConfig = Field(default=StudyConfig(), description="the reader study")
