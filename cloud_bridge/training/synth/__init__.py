"""Physical models that make the training data: a rotating machine and slow process values. Seeded, pure."""
