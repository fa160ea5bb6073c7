//! Content store on the distribution layout.
