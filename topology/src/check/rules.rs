//! Rules versions: hashes of everything that determines which rows a device has.
//!
//! The order in the file, comments and parameter names do not change a version. If the version of a view changes,
//! all its rows are rebuilt, so the hashed texts have a stable format that begins with a format number.

use crate::checked::{Input, Segment, Topology, View};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

/// Computes the versions of all views and of the topology.
pub(super) fn set_versions(topology: &mut Topology) {
    let texts: Vec<String> = topology
        .views
        .iter()
        .map(|view| view_text(topology, view).to_string())
        .collect();
    for (view, text) in topology.views.iter_mut().zip(&texts) {
        view.rules_version = xxh3_64(text.as_bytes());
    }
    let mut texts = texts;
    texts.sort_unstable();
    let whole = json!([1, topology.view_log_partitions, texts]);
    topology.rules_version = xxh3_64(whole.to_string().as_bytes());
}

fn view_text(topology: &Topology, view: &View) -> Value {
    let columns = topology.columns_of(view.input);
    let name_of = |at: usize| columns.get(at).map_or("", |column| column.name.as_str());
    let segments = |segments: &[Segment]| -> Value {
        let segment = |segment: &Segment| match segment {
            Segment::Literal(word) => json!(["word", word]),
            Segment::Param(at) => json!(["column", name_of(*at)]),
        };
        segments.iter().map(segment).collect()
    };
    let fields: Value = view
        .fields
        .iter()
        .filter_map(|field| {
            let column = columns.get(field.column)?;
            Some(json!([column.name, field.name, column.declared]))
        })
        .collect();
    let (from, key) = match view.input {
        Input::Table { source, table } => {
            let source = topology.sources.get(source);
            let table = source.and_then(|source| source.tables.get(table));
            let names = (
                source.map(|source| source.name.as_str()),
                table.map(|table| table.name.as_str()),
            );
            (json!(names), table.and_then(|table| table.key.clone()))
        }
        Input::Event(at) => {
            let event = topology.events.get(at);
            (
                json!(["event", event.map(|event| event.name.as_str())]),
                event.map(|event| event.key.clone()),
            )
        }
        Input::Processor(at) => {
            let processor = topology.processors.get(at);
            (
                json!(["processor", processor.map(|processor| processor.name.as_str())]),
                processor.map(|processor| processor.key.clone()),
            )
        }
    };
    let key = key.map(|key| key.iter().map(|at| name_of(*at)).collect::<Vec<_>>());
    // Arrays are used, because the order of an object's keys depends on a feature flag of serde_json.
    json!([
        1,
        view.name.as_str(),
        from,
        key,
        fields,
        segments(&view.bucket_name),
        segments(&view.scope_name),
        view.filter.as_ref().map(|program| program.text()),
    ])
}
