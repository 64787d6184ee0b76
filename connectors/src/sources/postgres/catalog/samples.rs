//! Tables of the catalog, for unit tests.

use super::{Column, Table};
use std::collections::{BTreeMap, BTreeSet};

/// A column that is not null.
pub fn column(name: &str, type_name: &str) -> Column {
    Column {
        name: name.to_owned(),
        number: 1,
        type_oid: 0,
        type_modifier: -1,
        type_name: type_name.to_owned(),
        changed_by: 1,
        labels: BTreeMap::new(),
        nullable: false,
        generated: false,
        readable: true,
    }
}

/// A table in the schema `public` with the primary key `id`, which the connector's user owns.
pub fn table(name: &str, columns: Vec<Column>) -> Table {
    let key = vec![String::from("id")];
    Table {
        oid: 1,
        schema: String::from("public"),
        name: name.to_owned(),
        replica_identity: 'd',
        file_node: 1,
        readable: true,
        owned: true,
        unlogged: false,
        partitioned: false,
        has_children: false,
        row_security: false,
        columns,
        primary_key: key.clone(),
        deferrable_key: false,
        identity_index: Vec::new(),
        unique_keys: vec![key],
        partitions: BTreeMap::new(),
        partition_identity: BTreeSet::new(),
        has_full_partition: false,
    }
}
