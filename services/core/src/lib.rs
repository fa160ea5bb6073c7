//! Pure domain: image references, digests, rewrite rules, quantities.
