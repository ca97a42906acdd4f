"""LoRA and related adapters: names, layouts, shapes and formulas."""
