"""What the server of `processes` loads before it forks: all that a run would load, or work out, anew each time.

Nothing here computes with torch or starts a thread, which a fork would be without.
"""

from importlib import import_module

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

HEADSTART = "__main__ terminal stages.audit stages.baseline.ladder stages.encoders.hf stages.extract stages.inspect"
HEADSTART += " stages.predict stages.repair stages.sweep stages.train_head"
OTHERS = "pandas pyarrow.compute pyarrow.csv pyarrow.pandas_compat pyarrow.parquet transformers.convert_slow_tokenizer"
OTHERS += " transformers.models.auto.tokenization_auto transformers.models.bert.modeling_bert"

for name in [*(f"headstart.{name}" for name in HEADSTART.split()), *OTHERS.split()]:
    import_module(name)
get_checkpoint_conversion_mapping("bert")  # compiles a thousand patterns for all architectures
