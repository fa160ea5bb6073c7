//! Custom resources, labels and annotations.
