//! Distribution API and fills from upstream.
