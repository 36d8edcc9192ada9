"""The encoders most used for classification, their files' layouts, and what headstart does with a tiny copy of each.

``python tests/survey.py`` writes the page ``docs/encoders.md``. The tests compare the page with what the code does.
Fields are those of the published files, as far as they decide a vector. A comment says where they were read: a file
that is named is the encoder's own or a public copy of it; a card is what sentence-transformers printed of the encoder.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headstart.cache.errors import UserError
from headstart.cache.reader import Cache, open_cache
from headstart.stages.extract import extract
from headstart.stages.settings import OTHER_MAX_LENGTH, ExtractSettings
from tiny import WORDS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "encoders.md"
TEXTS = [
    "a good film",
    "A Bad phone, it broke.",
    "love",
    " ".join(WORDS * 12),
    "the plot was fine and the screen works",
]
WIDTH = 32  # of each tiny copy
TANH, IDENTITY = "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"
NORMALIZE = ("Normalize", {})
QUERY = {"query": "Represent this sentence for searching relevant passages: "}


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A kind of tokenizer."""

    kind: str
    special: tuple[str, ...]  # the first of the vocabulary, in order
    before: str | None
    after: str
    klass: str = "PreTrainedTokenizerFast"  # as tokenizer_config.json names it

    @property
    def pad(self) -> str:
        return self._named("pad") or self.after

    def special_tokens(self) -> dict[str, str]:
        """By the names of tokenizer_config.json."""
        named = {name: self._named(name) for name in ("unk", "mask")}
        named |= {"pad": self.pad, "cls": self.before, "sep": self.after, "bos": self.before, "eos": self.after}
        return {f"{name}_token": token for name, token in named.items() if token}

    def _named(self, part: str) -> str | None:
        return next((name for name in self.special if part in name.lower()), None)


BERT = Tokens("WordPiece", ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), "[CLS]", "[SEP]", "BertTokenizer")
DISTILBERT = dataclasses.replace(BERT, klass="DistilBertTokenizer")
MPNET = Tokens("WordPiece", ("<s>", "<pad>", "</s>", "[UNK]", "<mask>"), "<s>", "</s>", "MPNetTokenizer")
XLMR = Tokens("Unigram", ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "<s>", "</s>", "XLMRobertaTokenizer")
DEBERTA = Tokens("Unigram", ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"), "[CLS]", "[SEP]", "DebertaV2Tokenizer")
ROBERTA = Tokens("byte-level BPE", ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "<s>", "</s>", "RobertaTokenizer")
MODERNBERT = Tokens("byte-level BPE", ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"), "[CLS]", "[SEP]")
QWEN = Tokens("byte-level BPE", ("<|endoftext|>", "<|im_end|>"), None, "<|endoftext|>", "Qwen2Tokenizer")
MISTRAL = Tokens("BPE with bytes", ("<unk>", "<s>", "</s>"), "<s>", "</s>", "LlamaTokenizer")
GEMMA = Tokens("BPE with bytes", ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"), "<bos>", "<eos>", "GemmaTokenizer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """An encoder."""

    name: str  # on the hub
    config: Mapping[str, Any]  # of config.json; sizes are shrunk
    tokens: Tokens
    pooling: str | None = None  # a mode; None where there is no modules.json
    modules: Sequence[tuple[str, Mapping[str, Any]]] = ()  # after the pooling
    transformer: Mapping[str, Any] | None = None  # sentence_bert_config.json; None where there is none
    transformer_file: str = "sentence_bert_config.json"
    length: int | None = None  # the tokenizer's, where it decides
    tokenizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # more of tokenizer_config.json
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    kinds: Sequence[Mapping[str, Any]] | None = None  # modules.json, where it is not as the fields above say

    @property
    def hidden(self) -> int:
        return int(self.config.get("hidden_size") or self.config.get("dim") or self.config.get("d_model") or WIDTH)

    @property
    def max_length(self) -> int | None:
        """Where its files cut a text; headstart's own number where there is no modules.json."""
        if self.pooling is None:
            return OTHER_MAX_LENGTH if self.kinds is None else None
        lengths = (self.length, self.config.get("max_position_embeddings"))
        given = (self.transformer or {}).get("max_seq_length")
        return int(given) if given else min((length for length in lengths if length), default=None)

    def vector(self) -> str:
        """In words, how its vectors are made."""
        if self.kinds is not None and self.pooling is None:
            return ", ".join(str(module["type"]).rpartition(".")[2] for module in self.kinds)
        words = [self.pooling or "not said"]
        for kind, fields in self.modules:
            tanh = " tanh" if fields.get("activation_function") == TANH else ""
            words.append("normalised" if kind == "Normalize" else f"dense to {fields['out_features']:,}{tanh}")
        return ", ".join(words)


def bert(**fields: Any) -> dict[str, Any]:
    """BERT-base's config.json."""
    sizes = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    texts = {"max_position_embeddings": 512, "type_vocab_size": 2, "vocab_size": 30522, "pad_token_id": 0}
    return {"model_type": "bert", **sizes, **texts, "hidden_act": "gelu", "layer_norm_eps": 1e-12, **fields}


def xlm_roberta(**fields: Any) -> dict[str, Any]:
    """XLM-RoBERTa-base's config.json."""
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "vocab_size": 250002}
    changed = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5, **ids, **fields}
    return bert(**{"model_type": "xlm-roberta", **changed})


def cut(length: int, **more: Any) -> dict[str, Any]:
    """A sentence_bert_config.json."""
    return {"max_seq_length": length, "do_lower_case": False, **more}


LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
SMALL = {"hidden_size": 384, "intermediate_size": 1536}
MODERN = {
    **{"model_type": "modernbert", "hidden_size": 768, "num_hidden_layers": 22, "num_attention_heads": 12},
    **{"intermediate_size": 1152, "vocab_size": 50368, "max_position_embeddings": 8192, "norm_eps": 1e-5},
    **{"global_attn_every_n_layers": 3, "local_attention": 128, "global_rope_theta": 160000.0},
    **{"local_rope_theta": 10000.0, "hidden_activation": "gelu", "norm_bias": False, "mlp_bias": False},
    **{"attention_bias": False, "pad_token_id": 50283, "bos_token_id": 50281, "eos_token_id": 50282},
    **{"cls_token_id": 50281, "sep_token_id": 50282},
}
JINA_CODE = "jinaai/xlm-roberta-flash-implementation"
GTE = {"layer_norm_type": "layer_norm", "position_embedding_type": "rope", "rope_theta": 500000, "pack_qkv": True}

ROWS = (
    # modules.json and pooling: the model's page; max_seq_length 256
    Row(
        name="sentence-transformers/all-MiniLM-L6-v2",
        config=bert(**SMALL, num_hidden_layers=6),
        tokens=BERT,
        pooling="mean",
        modules=[NORMALIZE],
        transformer=cut(256),
    ),
    # all its files
    Row(
        name="sentence-transformers/all-mpnet-base-v2",
        config=xlm_roberta(model_type="mpnet", relative_attention_num_buckets=32, vocab_size=30527),
        tokens=MPNET,
        pooling="mean",
        modules=[NORMALIZE],
        transformer=cut(384),
        length=512,
    ),
    # config.json: a copy; pooling and length: the cards of encoders trained from it. BERT's layers, XLM-R's tokenizer
    Row(
        name="sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
        config=bert(**SMALL, vocab_size=250037),
        tokens=dataclasses.replace(XLMR, klass="PreTrainedTokenizerFast"),  # its class was not found
        pooling="mean",
        transformer=cut(128),
    ),
    # config.json: a copy; pooling and length: cards
    Row(
        name="sentence-transformers/paraphrase-multilingual-mpnet-base-v2",
        config=xlm_roberta(),
        tokens=XLMR,
        pooling="mean",
        transformer=cut(128),
    ),
    # modules.json, 1_Pooling, 2_Dense, config.json and card
    Row(
        name="sentence-transformers/LaBSE",
        config=bert(vocab_size=501153),
        tokens=BERT,
        pooling="cls",
        modules=[("Dense", {"out_features": 768, "bias": True, "activation_function": TANH}), NORMALIZE],
        transformer=cut(256),
        tokenizer={"do_lower_case": False},
    ),
    # config.json, 2_Dense; pooling and length: cards of encoders trained from it
    Row(
        name="sentence-transformers/distiluse-base-multilingual-cased-v2",
        config={
            **{"model_type": "distilbert", "dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072},
            **{"activation": "gelu", "max_position_embeddings": 512, "vocab_size": 119547, "pad_token_id": 0},
            **{"sinusoidal_pos_embds": False, "output_hidden_states": True},
        },
        tokens=DISTILBERT,
        pooling="mean",
        modules=[("Dense", {"out_features": 512, "bias": True, "activation_function": TANH})],
        transformer=cut(128),
        tokenizer={"do_lower_case": False},
    ),
    # all files; the small and the large one differ in sizes alone
    Row(
        name="BAAI/bge-base-en-v1.5",
        config=bert(),
        tokens=BERT,
        pooling="cls",
        modules=[NORMALIZE],
        transformer={"max_seq_length": 512, "do_lower_case": True},
    ),
    # modules.json, sentence_bert_config.json, tokenizer_config.json; config.json: encoders trained from it
    Row(
        name="BAAI/bge-m3",
        config=xlm_roberta(**LARGE, max_position_embeddings=8194),
        tokens=XLMR,
        pooling="cls",
        modules=[NORMALIZE],
        transformer=cut(8192),
    ),
    # modules.json; the rest as e5-small's and e5-base-v2's commits. Its prompts stand on its card alone
    Row(
        name="intfloat/e5-small-v2",
        config=bert(**SMALL),
        tokens=BERT,
        pooling="mean",
        modules=[NORMALIZE],
        transformer=cut(512),
    ),
    # modules.json, config.json, cards; the large one differs in sizes alone
    Row(
        name="intfloat/multilingual-e5-base",
        config=xlm_roberta(),
        tokens=XLMR,
        pooling="mean",
        modules=[NORMALIZE],
        transformer=cut(512),
    ),
    # the list of its files, with their sizes: its settings have another file name, its prompts are in no file
    Row(
        name="intfloat/multilingual-e5-large-instruct",
        config=xlm_roberta(**LARGE),
        tokens=XLMR,
        pooling="mean",
        modules=[NORMALIZE],
        transformer=cut(512),
        transformer_file="sentence_xlm-roberta_config.json",
    ),
    # modules.json; pooling: its card; length as printed of encoders trained from it
    Row(
        name="thenlper/gte-small",
        config=bert(**SMALL),
        tokens=BERT,
        pooling="mean",
        modules=[NORMALIZE],
        transformer=cut(512),
    ),
    # 1_Pooling and modules.json: a copy; config.json: as gte-large-en-v1.5's
    Row(
        name="Alibaba-NLP/gte-base-en-v1.5",
        config=bert(
            **{"model_type": "new", **GTE, "max_position_embeddings": 8192, "vocab_size": 30528},
            auto_map={
                "AutoConfig": "Alibaba-NLP/new-impl--configuration.NewConfig",
                "AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel",
            },
        ),
        tokens=BERT,
        pooling="cls",
        transformer=cut(8192),
    ),
    # the layout that transformers has of its own (its documentation's checkpoint); the other files were not found
    Row(
        name="alibaba-nlp-community/gte-multilingual-base",
        config=xlm_roberta(model_type="gte", max_position_embeddings=8192, vocab_size=250048, layer_norm_eps=1e-12),
        tokens=XLMR,
        pooling="cls",
        transformer=cut(8192),
    ),
    # config.json; modules.json, by its size; no sentence_bert_config.json in the list of files
    Row(
        name="Alibaba-NLP/gte-modernbert-base",
        config=MODERN,
        tokens=MODERNBERT,
        pooling="cls",
        length=8192,
    ),
    # config.json: copies, by GPT-2's names; the sizes by other names are transformers' defaults at the real size.
    # Pooling, modules and length: cards. Its prompts stand on its card alone
    Row(
        name="nomic-ai/nomic-embed-text-v1.5",
        config={
            **{"model_type": "nomic_bert", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_inner": 3072},
            **{"activation_function": "swiglu", "causal": False, "layer_norm_epsilon": 1e-12, "prenorm": False},
            **{"parallel_block": False, "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "n_positions": 8192},
            **{"rotary_emb_interleaved": False, "rotary_scaling_factor": None, "vocab_size": 30528},
            **{"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "intermediate_size": 3072},
            "auto_map": {
                "AutoConfig": "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBertConfig",
                "AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel",
            },
        },
        tokens=BERT,
        pooling="mean",
        transformer=cut(8192),
    ),
    # modules.json; config.json as ModernBERT's; pooling and length: cards. Its prompts were found in no file
    Row(
        name="nomic-ai/modernbert-embed-base",
        config=MODERN,
        tokens=MODERNBERT,
        pooling="mean",
        modules=[NORMALIZE],
        transformer=cut(8192),
    ),
    # config.json, modules.json and prompts: copies; length: its card
    Row(
        name="jinaai/jina-embeddings-v3",
        config=xlm_roberta(
            **LARGE,
            max_position_embeddings=8194,
            auto_map={
                "AutoConfig": f"{JINA_CODE}--configuration_xlm_roberta.XLMRobertaFlashConfig",
                "AutoModel": f"{JINA_CODE}--modeling_lora.XLMRobertaLoRA",
            },
        ),
        tokens=XLMR,
        length=8192,
        pooling="mean",
        modules=[NORMALIZE],
        prompts={
            "retrieval.query": "Represent the query for retrieving evidence documents: ",
            "retrieval.passage": "Represent the document for retrieval: ",
            **dict.fromkeys(("separation", "classification", "text-matching"), ""),
        },
    ),
    # the layout that transformers has of its own (its documentation's checkpoint), without adapters; not found in full
    Row(
        name="jinaai/jina-embeddings-v3-hf",
        config=xlm_roberta(**LARGE, model_type="jina_embeddings_v3", max_position_embeddings=8194),
        tokens=XLMR,
        pooling="mean",
        modules=[NORMALIZE],
        transformer=cut(8192),
    ),
    # all files: commits of the same change to its sisters
    Row(
        name="Snowflake/snowflake-arctic-embed-m",
        config=bert(),
        tokens=BERT,
        pooling="cls",
        modules=[NORMALIZE],
        transformer=cut(512, model_args={"add_pooling_layer": False}),
        prompts=QUERY,
    ),
    # the list of its files, 1_Pooling of a copy; its own prompt: cards
    Row(
        name="Snowflake/snowflake-arctic-embed-m-v2.0",
        config=xlm_roberta(
            **{"model_type": "gte", **GTE, "max_position_embeddings": 8192},
            auto_map={
                "AutoConfig": "configuration_hf_alibaba_nlp_gte.GteConfig",
                "AutoModel": "modeling_hf_alibaba_nlp_gte.GteModel",
            },
        ),
        tokens=XLMR,
        pooling="cls",
        modules=[NORMALIZE],
        prompts={"query": "query: "},
    ),
    # config.json, sentence_bert_config.json; modules.json by its size; the prompt: its history and card
    Row(
        name="mixedbread-ai/mxbai-embed-large-v1",
        config=bert(**LARGE),
        tokens=BERT,
        pooling="cls",
        transformer=cut(512),
        prompts=QUERY,
    ),
    # modules, pooling and length as printed of it; prompts: its file, quoted; config.json: Qwen3-0.6B-Base's
    Row(
        name="Qwen/Qwen3-Embedding-0.6B",
        config={
            **{"model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16},
            **{"num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151669},
            **{"max_position_embeddings": 32768, "rope_theta": 1000000, "rms_norm_eps": 1e-6, "hidden_act": "silu"},
            **{"sliding_window": None, "use_sliding_window": False, "attention_bias": False},
        },
        tokens=QWEN,
        pooling="lasttoken",
        modules=[NORMALIZE],
        length=131072,
        tokenizer={"padding_side": "left"},
        prompts={
            "query": "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:",
            "document": "",
        },
    ),
    # config.json and prompts: a copy, whose window transformers 4.57 halved to 257; 2_Dense and the number of modules:
    # copies; 3_Dense, length: cards
    Row(
        name="google/embeddinggemma-300m",
        config={
            **{"model_type": "gemma3_text", "hidden_size": 768, "num_hidden_layers": 24, "num_attention_heads": 3},
            **{"num_key_value_heads": 1, "head_dim": 256, "query_pre_attn_scalar": 256, "intermediate_size": 1152},
            **{"vocab_size": 262144, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 1e6},
            **{"rope_local_base_freq": 1e4, "sliding_window": 512, "use_bidirectional_attention": True},
            **{"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "pad_token_id": 0},
            **{"bos_token_id": 2, "eos_token_id": 1, "layer_types": ["sliding_attention", "full_attention"]},
        },
        tokens=GEMMA,
        pooling="mean",
        modules=[
            ("Dense", {"out_features": 3072, "bias": False, "activation_function": IDENTITY}),
            ("Dense", {"out_features": 768, "bias": False, "activation_function": IDENTITY}),
            NORMALIZE,
        ],
        transformer=cut(2048),
        prompts={
            **dict.fromkeys(("query", "Reranking"), "task: search result | query: "),
            "document": "title: none | text: ",
            "Clustering": "task: clustering | query: ",
            **dict.fromkeys(("Classification", "MultilabelClassification"), "task: classification | query: "),
            "STS": "task: sentence similarity | query: ",
        },
    ),
    # config.json, modules.json and prompts; 1_Pooling by its size and card; length: card
    Row(
        name="intfloat/e5-mistral-7b-instruct",
        config={
            **{"model_type": "mistral", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32},
            **{"num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32000, "sliding_window": 4096},
            **{"max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu"},
            **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
        },
        tokens=MISTRAL,
        pooling="lasttoken",
        modules=[NORMALIZE],
        transformer=cut(4096),
        prompts={
            "web_search_query": "Instruct: Given a web search query, retrieve relevant passages that answer the query"
            "\nQuery: ",
            "sts_query": "Instruct: Retrieve semantically similar text.\nQuery: ",
            "summarization_query": "Instruct: Given a news summary, retrieve other semantically similar summaries\n"
            "Query: ",
            "bitext_query": "Instruct: Retrieve parallel sentences.\nQuery: ",
        },
    ),
    # config.json, modules.json, 1_Pooling and prompts: copies
    Row(
        name="dunzhang/stella_en_1.5B_v5",
        config={
            **{"model_type": "qwen2", "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12},
            **{"num_key_value_heads": 2, "intermediate_size": 8960, "vocab_size": 151646, "rms_norm_eps": 1e-6},
            "auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"},
        },
        tokens=QWEN,
        pooling="mean",
        modules=[("Dense", {"out_features": 1024, "bias": True, "activation_function": IDENTITY})],
        prompts={
            "s2p_query": "Instruct: Given a web search query, retrieve relevant passages that answer the query.\n"
            "Query: ",
            "s2s_query": "Instruct: Retrieve semantically similar text.\nQuery: ",
        },
    ),
    # config.json and modules.json: a copy of instructor-xl
    Row(
        name="hkunlp/instructor-xl",
        config={
            **{"model_type": "t5", "d_model": 1024, "num_layers": 24, "num_heads": 32, "d_ff": 16384, "d_kv": 128},
            **{"vocab_size": 32128, "is_encoder_decoder": True, "pad_token_id": 0, "decoder_start_token_id": 0},
        },
        tokens=XLMR,
        pooling="mean",
        modules=[("Dense", {"out_features": 768, "bias": False, "activation_function": IDENTITY}), NORMALIZE],
        transformer=cut(512),
    ),
    # modules.json: a copy; config.json: that of another encoder of the kind
    Row(
        name="minishlab/potion-base-8M",
        config={"model_type": "model2vec", "hidden_dim": 256, "seq_length": 1000000, "normalize": True},
        tokens=BERT,
        kinds=[
            {"path": ".", "type": "sentence_transformers.models.StaticEmbedding"},
            {"path": "1_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
    ),
    # The rest are no sentence-transformers: config.json alone, as transformers' defaults have it
    Row(name="google-bert/bert-base-uncased", config=bert(), tokens=BERT),
    Row(name="google-bert/bert-base-chinese", config=bert(vocab_size=21128), tokens=BERT),
    Row(name="FacebookAI/roberta-base", config=xlm_roberta(model_type="roberta", vocab_size=50265), tokens=ROBERTA),
    Row(name="FacebookAI/xlm-roberta-base", config=xlm_roberta(), tokens=XLMR),
    # config.json
    Row(
        name="microsoft/deberta-v3-base",
        config=bert(
            **{"model_type": "deberta-v2", "relative_attention": True, "position_buckets": 256, "type_vocab_size": 0},
            **{"norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": "p2c|c2p", "layer_norm_eps": 1e-7},
            **{"max_relative_positions": -1, "position_biased_input": False, "vocab_size": 128100},
        ),
        tokens=DEBERTA,
    ),
    Row(name="answerdotai/ModernBERT-base", config=MODERN, tokens=MODERNBERT),
)


def save_tiny(row: Row, folder: Path) -> Path:
    """Save a tiny random encoder of the row's layout."""
    import torch
    import transformers as hf
    from safetensors.torch import save_file

    ids = save_tokenizer(row, folder)
    config = shrunk(row, ids)
    torch.manual_seed(0)
    known = hf.models.auto.configuration_auto.CONFIG_MAPPING
    kind = config["model_type"]
    if kind in known and not needs_code(config):
        large = {"initializer_range": 0.2}  # so that which tokens are attended to shows in the vectors
        fields = {name: value for name, value in config.items() if name != "auto_map"}
        hf.AutoModel.from_config(hf.AutoConfig.for_model(**fields, **large)).save_pretrained(folder)
        config = {**json.loads((folder / "config.json").read_bytes()), **config}
    else:
        save_file({"weight": torch.zeros(2, 2)}, folder / "model.safetensors", {"format": "pt"})
    write(folder / "config.json", config)
    if row.kinds is None and row.pooling is None:
        return folder
    steps = [("Transformer", {}), ("Pooling", {}), *row.modules]
    paths = [f"{number}_{kind}" if number else "" for number, (kind, _) in enumerate(steps)]
    package = "sentence_transformers.models."
    modules = [{"path": path, "type": package + kind} for path, (kind, _) in zip(paths, steps, strict=True)]
    named = [{"idx": n, "name": str(n), **module} for n, module in enumerate(row.kinds or modules)]
    write(folder / "modules.json", named)
    if row.kinds is None:
        legacy = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "lasttoken": "lasttoken"}
        modes = {f"pooling_mode_{name}": mode == row.pooling for mode, name in legacy.items()}
        write(folder / paths[1] / "config.json", {"word_embedding_dimension": WIDTH, **modes, "include_prompt": True})
    inputs = WIDTH
    for path, (step, fields) in zip(paths[2:], row.modules, strict=True):
        if step == "Dense":
            width = fields["out_features"] * WIDTH // row.hidden
            write(folder / path / "config.json", {**fields, "in_features": inputs, "out_features": width})
            weights = {"linear.weight": torch.randn(width, inputs) / math.sqrt(inputs)}
            weights |= {"linear.bias": torch.randn(width)} if fields["bias"] else {}
            save_file(weights, folder / path / "model.safetensors")
            inputs = width
    if row.transformer is not None:
        write(folder / row.transformer_file, dict(row.transformer))
    write(folder / "config_sentence_transformers.json", {"prompts": dict(row.prompts), "default_prompt_name": None})
    return folder


def needs_code(config: Mapping[str, Any]) -> bool:
    """Whether an encoder has code of its own that transformers does not have as a class."""
    return "auto_map" in config and config["model_type"] not in ("gte", "nomic_bert")


def shrunk(row: Row, ids: Mapping[str, int]) -> dict[str, Any]:
    """The row's config.json with tiny sizes, and the tokenizer's own ids."""
    small = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    small |= {"num_key_value_heads": 1, "head_dim": 16, "query_pre_attn_scalar": 16, "vocab_size": len(ids)}
    small |= {"dim": WIDTH, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}  # DistilBERT's
    small |= {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_inner": 64}  # Nomic's
    small |= {"d_model": WIDTH, "num_layers": 1, "num_heads": 2, "d_ff": 64, "d_kv": 16}  # T5's
    tokens = row.tokens
    named = {"pad": tokens.pad, "bos": tokens.before, "cls": tokens.before, "eos": tokens.after, "sep": tokens.after}
    small |= {f"{name}_token_id": ids[token] for name, token in named.items() if token is not None}
    return {field: small.get(field, value) for field, value in row.config.items()}


def save_tokenizer(row: Row, folder: Path) -> dict[str, int]:
    """Save a tiny tokenizer of the row's kind; returns its vocabulary."""
    import tokenizers
    import transformers as hf
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    special, kind = row.tokens.special, row.tokens.kind
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + [str(d) for d in range(10)] + list(",.:|ABIQRT")
    merges, merged = [("t", "h"), ("th", "e")], ["th", "the"]
    match kind:
        case "WordPiece":
            names = [*special, *WORDS, *letters, *(f"##{letter}" for letter in letters)]
            lower = bool(row.tokenizer.get("do_lower_case", True))
            model = models.WordPiece({name: n for n, name in enumerate(dict.fromkeys(names))}, unk_token="[UNK]")
            tokenizer = tokenizers.Tokenizer(model)
            tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
            tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        case "Unigram":
            pieces = ["\u2581", *(f"\u2581{word}" for word in WORDS), *letters]
            scores = [*((name, 0.0) for name in special), *((piece, -2.0 - len(piece) / 50) for piece in pieces)]
            unknown = next(n for n, name in enumerate(special) if "unk" in name.lower())
            tokenizer = tokenizers.Tokenizer(models.Unigram(scores, unk_id=unknown, byte_fallback=False))
            tokenizer.normalizer = normalizers.NFKC()
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
            tokenizer.decoder = decoders.Metaspace()
        case "byte-level BPE":
            names = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *merged]
            tokenizer = tokenizers.Tokenizer(models.BPE({name: n for n, name in enumerate(names)}, merges))
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
        case _:
            names = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *letters, *merged]
            vocabulary = {name: n for n, name in enumerate(dict.fromkeys(names))}
            fallback = {"unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True}
            tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges, **fallback))
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
            tokenizer.decoder = decoders.Metaspace()
    ids: dict[str, int] = tokenizer.get_vocab()
    before, after = row.tokens.before, row.tokens.after
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(part for part in (before, "$A", after) if part),
        special_tokens=[(name, ids[name]) for name in dict.fromkeys((before, after)) if name],
    )
    length = row.length or (row.transformer or {}).get("max_seq_length") or row.config.get("max_position_embeddings")
    names = ["input_ids", "attention_mask"]
    names += ["token_type_ids"] if row.tokens.klass == "BertTokenizer" else []
    hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=length,
        model_input_names=names,
        **row.tokens.special_tokens(),
    ).save_pretrained(folder)
    fields = json.loads((folder / "tokenizer_config.json").read_bytes())
    write(folder / "tokenizer_config.json", {**fields, **row.tokenizer, "tokenizer_class": row.tokens.klass})
    return ids


def write(path: Path, document: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")


def settings(folder: Path, **options: Any) -> ExtractSettings:
    """Zero options, but for the precision, which depends on the processor."""
    return ExtractSettings(encoder=str(folder), precision="float32", label_column=None, **options)


def encode(row: Row, folder: Path) -> tuple[str, Cache | None]:
    """Save the row's tiny encoder, and encode texts: what is done with it, and the cache."""
    try:
        cache = open_cache(extract(TEXTS, folder.with_suffix(".h5"), settings(save_tiny(row, folder))))
    except UserError as error:
        said = str(error).replace(f"encoder {folder}: ", "").replace(f"encoder {folder}", "it")
        return f"refused: {said.replace(str(folder), 'FOLDER')}", None
    return str(cache.plan["path"]) + ("" if row.pooling else "; the feature is cls"), cache


def line(row: Row, done: str) -> str:
    """Return the row's line of the page."""
    kind = f"{row.config['model_type']}, {row.tokens.kind}"
    length = f"{row.max_length:,}" if row.max_length else ""
    return f"| {row.name} | {kind} | {row.vector()} | {', '.join(row.prompts)} | {length} | {done} |"


def page(folder: Path) -> str:
    """Return the whole page."""
    head = "| encoder | architecture, tokenizer | its vector | prompts | tokens | here |\n|---|---|---|---|---|---|\n"
    lines = [line(row, encode(row, folder / str(number))[0]) for number, row in enumerate(ROWS)]
    return INTRODUCTION + head + "\n".join(lines) + "\n"


INTRODUCTION = """# Encoders

`python tests/survey.py` writes this page; the tests compare it with what the code does. For each encoder, the tests
make a tiny one with random weights and the same layout: the fields of its config.json, its kind of tokenizer, its
`modules.json`, pooling and prompts. `tests/survey.py` says where each was read. headstart encodes texts with the tiny
encoder and no option; the vectors are those that transformers and sentence-transformers give, to 1e-5.

- *its vector*: how the encoder's files say that it is made; headstart takes it as the feature `model`. Where the files
  do not say, the feature is `cls`, and a note says so.
- *prompts*: the names that `--prompt` takes. Some encoders have prompts on their card alone: give these with
  `--prefix`.
- *tokens*: where a text is cut, unless `--max-length` is given.
- *here*: *packed* is the pass without padding; *padded* is the model's own pass. In each case the vector is the same.

"""


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        PAGE.write_text(page(Path(scratch)), encoding="utf-8")
