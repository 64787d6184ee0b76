//! trunkline-processors
