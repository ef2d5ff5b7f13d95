"""Events out of OMOP tables: numbers, codes, notes and images, and from when on each may be known.

The engine's table `asked` names the patients, the beginning of the first predicted stay and the last
moment of prediction of each; `samples` every moment; `visits` and `episodes` when visits and stays end.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from .omop_rows import Engine, RowQuery, moment, whole_cells, wrong_moments
from .omop_tables import LAYOUTS, Table, Wrong, wrong_cells

LIMITS = (4171754, 4171755, 4171756, 4172704)
"""Concepts of operator_concept_id: <=, >=, <, >."""

DISCHARGE_SUMMARY = 44814637
"""The concept of the vocabulary Note Type."""

CLOSING_WORDS = "discharge|death|deceased|autops|post.?mortem"
"""What a note that looks back on a stay is called, in its class, type, title or source (a regular expression)."""

CODED_LATER = "INTERVAL 24 HOUR"
"""Codes are settled after the end of a stay, for the bill. They count from this long after it, so that
a prediction at the very end does not see them either."""

# The end of a visit that goes on: later than any moment of prediction.
_NEVER = "TIMESTAMP '9999-01-01'"


def take_rows(engine: Engine, table: Table, zoned: bool) -> None:
    """Make the engine's table `{name}_rows`: of the patients asked about, dated up to the last prediction.

    Beside all columns of the layout but times it has `time`, nominal, and `first` and `known`, the
    interval in which the event lies.
    """
    layout = LAYOUTS[table.name]
    (name,) = layout.moments
    cells = [column for column, role in layout.columns.items() if role != "time"]
    when = moment(table, name, zoned)
    when = when._replace(columns={column.removeprefix(f"{name}_"): sql for column, sql in when.columns.items()})
    wrong = [Wrong(table.blank("person_id"), "person_id is blank", "Fill it in, or remove the row")]
    wrong += wrong_cells(table, ["person_id"]) + wrong_moments(table, name, zoned)
    wrong += wrong_cells(table, [column for column in cells if column != "person_id"])
    if table.name == "note":
        no_text = f"{table.cell('note_text')} IS NULL"
        wrong.append(Wrong(no_text, "note_text is blank", "Fill it in, or remove the row"))
    matters = "own.person_id IS NULL OR (asked.last IS NOT NULL AND (own.time IS NULL OR own.known <= asked.last))"
    query = RowQuery(table, whole_cells(table, *cells), wrong, [when], matters, "LEFT JOIN asked USING (person_id)")
    engine.take(f"{table.name}_rows", query)


def know_people(engine: Engine, people: Table) -> None:
    """Make the engine's table `known_people` of everybody in the table person or with a visit."""
    engine.run(
        f"""
        CREATE TABLE known_people AS
        SELECT person_id FROM (SELECT {people.cell("person_id")} AS person_id FROM {people.rows})
        WHERE person_id IS NOT NULL UNION SELECT person_id FROM visits
        """,
        people,
    )


def count_strangers(engine: Engine, table: Table) -> int:
    """How many rows of a table are of persons who are not in `known_people`."""
    # Each person's cell is brought into its type once.
    each = f"(SELECT person_id, count(*) AS number FROM {table.rows} GROUP BY person_id)"
    own = f"(SELECT {table.cell('person_id')} AS person_id, number FROM {each})"
    counted = f"SELECT sum(number) FROM {own} ANTI JOIN known_people USING (person_id) WHERE person_id IS NOT NULL"
    return int(engine.run(counted, table).fetchall()[0][0] or 0)


def empty_rows(engine: Engine, name: str) -> None:
    """Make the engine's table `{name}_rows` of a table that the source lacks."""
    types = {"whole": "BIGINT", "number": "DOUBLE", "words": "VARCHAR"}
    columns = [f"{column} {types[role]}" for column, role in LAYOUTS[name].columns.items() if role != "time"]
    columns += [f"{column} TIMESTAMP" for column in ("time", "first", "known")]
    engine.run(f"CREATE TABLE {name}_rows ({', '.join(columns)})")


def used_concepts(engine: Engine) -> np.ndarray:
    """Make the engine's table `used` of the concepts to be named, and give them, int64."""
    columns = {
        "measurement_rows": ("measurement_concept_id", "value_as_concept_id", "unit_concept_id"),
        "observation_rows": ("observation_concept_id", "value_as_concept_id", "unit_concept_id"),
        "condition_occurrence_rows": ("condition_concept_id",),
        "note_rows": ("note_class_concept_id", "note_type_concept_id"),
        "people": ("gender_concept_id", "race_concept_id", "ethnicity_concept_id"),
    }
    every = " UNION ".join(
        f"SELECT {column} AS concept_id FROM {table}" for table, some in columns.items() for column in some
    )
    engine.run(f"CREATE TABLE used AS SELECT * FROM ({every}) WHERE concept_id <> 0 ORDER BY concept_id")
    return engine.frame("SELECT concept_id FROM used ORDER BY concept_id")["concept_id"].to_numpy()


def name_concepts(engine: Engine, table: Table | None) -> None:
    """Make the engine's table `named`: each used concept's label (its name, or else its number) and unit symbol.

    Zero is the concept of what has none, and gets no name.
    """
    if table is None:
        engine.run("CREATE TABLE concepts (concept_id BIGINT, concept_name VARCHAR, symbol VARCHAR)")
    else:
        symbol = f"CASE WHEN {table.cell('vocabulary_id')} = 'UCUM' THEN {table.cell('concept_code')} END"
        columns = whole_cells(table, "concept_id", "concept_name") | {"symbol": symbol}
        ours = "concept_id IN (SELECT concept_id FROM used)"
        engine.take("concepts", RowQuery(table, columns, wrong_cells(table, ["concept_id", "concept_name"]), (), ours))
    engine.run(
        """
        CREATE TABLE named AS
        SELECT u.concept_id, coalesce(trim(min(c.concept_name)), CAST(u.concept_id AS VARCHAR)) AS label,
            coalesce(trim(min(c.symbol)), trim(min(c.concept_name))) AS symbol
        FROM used AS u LEFT JOIN concepts AS c USING (concept_id) GROUP BY u.concept_id
        """
    )


def close(engine: Engine, rows: str, looks_back: str, delay: str = "INTERVAL 0 HOUR") -> None:
    """Make the engine's view `{rows}_known`: the rows, and from when on each is `available`.

    A row that looks back on a visit or stay is not available before it has ended. It belongs to the
    visit that it names and to every stay in hospital in whose time it lies, from the row's own time to
    the end of its visit. Where one of these has no end, it never is available.

    Args:
        engine: has `visits` and `episodes`.
        rows: a table or view, with `person_id`, `visit_occurrence_id`, `first`, `known`.
        looks_back: SQL over its columns: whether a row does, true or false.
        delay: how long after the end, SQL.
    """
    engine.run(
        f"""
        CREATE TABLE {rows}_back AS SELECT * FROM {rows} WHERE {looks_back};
        CREATE TABLE {rows}_closed AS
        WITH linked AS (
            SELECT r.rowid AS number, r.person_id, r.first, r.known,
                max(CASE WHEN v.person_id IS NOT NULL THEN coalesce(v.stop_known, {_NEVER}) END) AS stop
            FROM {rows}_back AS r LEFT JOIN visits AS v USING (person_id, visit_occurrence_id) GROUP BY ALL
        )
        SELECT l.number,
            greatest(l.known, l.stop + {delay}, max(CASE WHEN e.person_id IS NOT NULL
                THEN coalesce(e.stop_known, {_NEVER}) + {delay} END)) AS available
        FROM linked AS l LEFT JOIN episodes AS e ON e.person_id = l.person_id
            AND (e.start_first < greatest(l.known, l.stop) OR e.start_first = l.first)
            AND l.first <= coalesce(e.stop_last, {_NEVER})
        GROUP BY l.number, l.known, l.stop;
        CREATE VIEW {rows}_known AS
        SELECT r.*, c.available FROM {rows}_back AS r JOIN {rows}_closed AS c ON c.number = r.rowid
        UNION ALL SELECT r.*, r.known FROM {rows} AS r WHERE NOT ({looks_back})
        """
    )


def within_reach(history: float | None) -> str:
    """SQL over rows (`r`): whether some sample of the patient may see a row that has `available`."""
    if history is None:
        return "r.available <= (SELECT last FROM asked WHERE asked.person_id = r.person_id)"
    # No time of the calendar lies further back than the largest reach, 146,000 years.
    reach = round(min(history * 3.6e9, 2.0**62))
    return (
        "EXISTS (SELECT 1 FROM samples AS s WHERE s.person_id = r.person_id AND r.available <= s.moment "
        f"AND epoch_us(s.moment) - epoch_us(r.available) <= {reach})"
    )


def lab_events(engine: Engine, history: float | None) -> tuple[pd.DataFrame, dict[str, int]]:
    """Numbers of measurement and observation, and codes; how many rows were left out or are limits.

    A code is an event of the value 1.
    """
    engine.run(
        """
        CREATE VIEW facts AS
        SELECT person_id, visit_occurrence_id, time, first, known, '' AS what, measurement_concept_id AS concept,
            measurement_source_value AS source, value_as_number AS number, value_as_concept_id AS answer,
            unit_concept_id, unit_source_value, operator_concept_id AS operator,
            value_as_number IS NULL AND coalesce(value_as_concept_id, 0) = 0 AS void
        FROM measurement_rows
        UNION ALL
        SELECT person_id, visit_occurrence_id, time, first, known, 'observation: ', observation_concept_id,
            observation_source_value, value_as_number, value_as_concept_id, unit_concept_id, unit_source_value, NULL,
            value_as_number IS NULL AND coalesce(value_as_concept_id, 0) = 0 AND value_as_string IS NOT NULL
        FROM observation_rows
        UNION ALL
        SELECT person_id, visit_occurrence_id, time, first, known, 'condition: ', condition_concept_id,
            condition_source_value, NULL, NULL, NULL, NULL, NULL, false
        FROM condition_occurrence_rows
        """
    )
    close(engine, "facts", "number IS NULL AND NOT void", CODED_LATER)
    engine.run(
        f"""
        CREATE VIEW labs AS
        SELECT r.person_id AS subject_id, r.time, r.available AS available_at, void,
            r.operator IN {LIMITS} AND NOT void AS limited,
            CASE WHEN r.number IS NOT NULL THEN coalesce(c.label, trim(r.source))
                WHEN coalesce(r.answer, 0) <> 0 THEN coalesce(c.label, trim(r.source)) || ': ' || a.label
                ELSE r.what || coalesce(c.label, trim(r.source)) END AS code,
            coalesce(r.number, 1) AS value,
            CASE WHEN r.number IS NOT NULL THEN coalesce(u.symbol, trim(r.unit_source_value), u.label) END AS unit
        FROM facts_known AS r
        LEFT JOIN named AS c ON c.concept_id = r.concept
        LEFT JOIN named AS a ON a.concept_id = r.answer
        LEFT JOIN named AS u ON u.concept_id = r.unit_concept_id
        WHERE {within_reach(history)}
        """
    )
    counts = {
        "rows without a number or a coded result left out": "void",
        "rows without a code left out": "code IS NULL AND NOT void",
        "results below or above a limit, taken at the limit": "limited AND code IS NOT NULL",
    }
    counted = ", ".join(f'count(*) FILTER ({which}) AS "{what}"' for what, which in counts.items())
    taken = "SELECT subject_id, time, code, value, unit, available_at FROM labs WHERE NOT void AND code IS NOT NULL"
    # The cohort's own order, which the engine is quicker to bring about.
    labs = engine.frame(taken, ("code", "unit"), "subject_id, available_at, time, code, value")
    return labs, engine.frame(f"SELECT {counted} FROM labs").iloc[0].astype(int).to_dict()


def note_events(engine: Engine, history: float | None) -> pd.DataFrame:
    """Notes; those that look back on a stay count from its end."""
    engine.run(
        """
        CREATE VIEW notes AS
        SELECT n.*, coalesce(c.label, t.label) AS kind,
            concat_ws(' ', c.label, t.label, n.note_title, n.note_source_value) AS called
        FROM note_rows AS n
        LEFT JOIN named AS c ON c.concept_id = n.note_class_concept_id
        LEFT JOIN named AS t ON t.concept_id = n.note_type_concept_id
        """
    )
    summary = f"coalesce({DISCHARGE_SUMMARY} IN (note_class_concept_id, note_type_concept_id), false)"
    close(engine, "notes", f"regexp_matches(lower(called), '{CLOSING_WORDS}') OR {summary}")
    return engine.frame(
        f"""
        SELECT person_id AS subject_id, time, note_text AS text, kind, available AS available_at
        FROM notes_known AS r WHERE {within_reach(history)}
        """
    )


def image_events(engine: Engine, history: float | None) -> tuple[pd.DataFrame, dict[str, int]]:
    """Images with a path, and how many had none."""
    rows = f"(SELECT *, known AS available FROM image_occurrence_rows) AS r WHERE {within_reach(history)}"
    images = engine.frame(
        f"""
        SELECT person_id AS subject_id, time, local_path AS path, trim(image_study_uid) AS study_uid,
            available AS available_at FROM {rows}
        """
    )
    without = images["path"].isna()
    return images[~without].reset_index(drop=True), {"images without a local path left out": int(without.sum())}
