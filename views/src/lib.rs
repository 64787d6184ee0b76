//! trunkline-views
