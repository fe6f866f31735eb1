"""Arrays written as text arrive as they were."""

from __future__ import annotations

from uuid import UUID

import pytest
from django.db import connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marketplace.arrays import nullable_uuid_array, text_array

TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12), min_size=1
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=TEXTS)
def test_any_text_arrives_as_it_was(db: None, texts: list[str]) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s::text[]", [text_array(texts)])
        assert cursor.fetchone() == (texts,)


@pytest.mark.parametrize("text", ["NULL", "", ",", "{}", '"', "\\", '\\"', " a ", "\n"])
def test_text_with_a_meaning_in_arrays_has_none(db: None, text: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s::text[]", [text_array([text, "b"])])
        assert cursor.fetchone() == ([text, "b"],)


def test_a_missing_id_is_null(db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s::uuid[]", [nullable_uuid_array([None, UUID(int=5)])])
        assert cursor.fetchone() == ([None, UUID(int=5)],)
