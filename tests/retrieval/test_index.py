"""Search against brute force in float64; what was deleted is not found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rlhf_loop.feedback.privacy.deletion_files import redact_run
from rlhf_loop.feedback.privacy.deletion_rows import Deletion
from rlhf_loop.files import write_json
from rlhf_loop.files.step_folders import step_folder
from rlhf_loop.retrieval import index as index_module
from rlhf_loop.retrieval.index import Index, Key, names_of, write
from rlhf_loop.run_dir import RunDir


def directions(rows: int, width: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=generator))


def keys(rows: int, name: str = "p") -> list[Key]:
    return [Key(prompt_id=f"{name}{row}") for row in range(rows)]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_search_over_several_files_is_that_of_brute_force(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "BLOCK", 7)  # blocks and files that do not fit each other
    sizes = (10, 1, 0, 25)
    for number, rows in enumerate(sizes):
        (tmp_path / str(number)).mkdir()
        vectors = directions(rows, seed=number) if rows else torch.zeros(0, 0)
        write(tmp_path / str(number), "prompts", keys(rows, f"{number}-"), vectors, dtype)
    index = Index.open([tmp_path / str(number) for number in range(len(sizes))], "prompts")
    stored = np.concatenate([np.load(tmp_path / f"{n}" / "prompts.npy") for n, rows in enumerate(sizes) if rows])
    stored = stored.astype(np.float64)
    queries = directions(5, seed=9)
    cosines, rows = index.search(queries, 6)
    products = queries.double().numpy() @ stored.T
    expected = np.argsort(-products, axis=1)[:, :6]
    assert rows.tolist() == expected.tolist()
    np.testing.assert_allclose(cosines.numpy(), np.take_along_axis(products, expected, 1), atol=1e-6)
    assert [index.key(row) for row in (0, 10, 11)] == [Key(prompt_id=name) for name in ("0-0", "1-0", "3-0")]
    assert index.rows_of_prompts({"3-0", "0-9", "none"}) == {"0-9": 9, "3-0": 11}
    asked = [Key(prompt_id="3-24"), Key(prompt_id="3-25"), Key(prompt_id="3-24", completion_id="c")]
    assert index.holds(asked) == [True, False, False]
    np.testing.assert_allclose(index.vectors([35, 0]).numpy(), stored[[35, 0]], atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_one_query_among_vectors_that_float16_cannot_tell_apart_is_exact(seed: int) -> None:
    query = directions(1, 64, seed)
    noise = 3e-3 * torch.randn(4000, 64, generator=torch.Generator().manual_seed(seed))
    matrix = torch.nn.functional.normalize(query + noise).half()  # cosines within some 1e-3 of one another
    index = Index([(names_of(keys(1500)), matrix[:1500]), (names_of(keys(2500, "q")), matrix[1500:])])
    products = matrix.double() @ query[0].double()
    assert products.topk(50).values[[0, -1]].diff().abs() < index_module.SLACK
    cosines, rows = index.search(query, 20)
    torch.testing.assert_close(cosines[0].double(), products.topk(20).values, atol=3e-7, rtol=0)
    assert len(set(rows[0].tolist()) & set(products.topk(22).indices.tolist())) == 20  # float32 may change the last


def test_only_rows_among_those_given_are_found_and_none_in_place_of_too_few() -> None:
    vectors = directions(20)
    index = Index([(names_of(keys(20)), vectors)])
    cosines, rows = index.search(vectors[3:4], 4, among=[5, 11])
    assert set(rows[0, :2].tolist()) == {5, 11}
    assert cosines[0, 2:].tolist() == [-torch.inf] * 2


def test_a_text_without_a_key_is_never_found() -> None:
    vectors = directions(6)
    named: list[Key | None] = list(keys(6))
    named[2] = None
    _, rows = Index([(names_of(named), vectors)]).search(vectors[2:3], 5)
    assert 2 not in rows[0].tolist()
    cosines, _ = Index([(names_of(named), vectors)]).search(vectors[2:3], 5, among=[2])
    assert cosines.tolist() == [[-torch.inf] * 5]


def test_an_index_of_nothing_finds_nothing() -> None:
    cosines, _ = Index([]).search(directions(2), 3)
    assert cosines.tolist() == [[-torch.inf] * 3] * 2


def test_a_deletion_takes_the_vectors_of_a_user_and_their_names(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    vectors = directions(4)
    for number in (0, 1):
        with step_folder(run.step(number, "embed"), f"key-{number}", {}) as folder:
            write(folder, "prompts", keys(4, f"{number}-"), vectors, "float16")
            answers = [Key(prompt_id=f"{number}-{row}", completion_id=f"answer-{number}-{row}") for row in range(4)]
            write(folder, "answers", answers, vectors, "float32")
            write_json(folder / "embed.json", {"made_of": "x"})
    deletion = Deletion(
        prompts={"0-2"}, completions={"answer-0-2", "answer-1-3"}, feedback=set(), texts=set(), comments=set(),
        annotators=set(),
    )  # fmt: skip
    with run.locked():
        redact_run(run, deletion, "user-x")
        assert redact_run(run, deletion, "user-x") == {}  # nothing is left to take out, and nothing counts as damaged
    folders = [run.step(number, "embed") for number in (0, 1)]
    assert not np.load(folders[0] / "prompts.npy")[2].any()
    assert np.load(folders[0] / "prompts.npy")[[0, 1, 3]].any(1).all()
    assert not np.load(folders[1] / "answers.npy")[3].any()
    assert pq.read_table(folders[0] / "answers.parquet").column("row").to_pylist() == [0, 1, 3]
    index = Index.open(folders, "answers")
    assert len(index) == 8
    assert [row for row in range(8) if index.key(row) is None] == [2, 7]
    gone, there = (Key(prompt_id="0-2", completion_id="answer-0-2"), Key(prompt_id="1-2", completion_id="answer-1-2"))
    assert index.holds([gone, there]) == [False, True]
    assert (index.rows_of_prompts({"0-2", "1-2"}), index.key(6)) == ({"1-2": 6}, there)
    _, rows = index.search(vectors[2:3], 6)
    assert not {2, 7} & set(rows[0].tolist())
