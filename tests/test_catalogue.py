"""The catalogue finds a model by its name or by an alias, and by nothing else."""

from __future__ import annotations

from corral.catalogue import Catalogue
from tests.models import a_model


def test_a_model_is_found_by_name_and_by_alias() -> None:
    big, small = a_model("big"), a_model("small")
    catalogue = Catalogue({"big": big, "small": small}, {"gpt-4o": "big"}, ())
    assert catalogue.find("big") is big
    assert catalogue.find("gpt-4o") is big
    assert catalogue.find("small") is small
    assert catalogue.find("Big") is None
    assert catalogue.find("") is None
