//! Draws a topology: as text for the terminal, or as DOT for Graphviz. The output depends only on the topology and follows
//! the order of the file.

use crate::checked::{SYNC_VIEWS, Segment, SourceKind, Topology, View, Work};
use crate::wiring::{Cleanup, Part, TopicKind, Wiring};
use std::fmt::Write;

/// Draws the data flow as text, followed by tables of views, buckets, topics and nodes.
pub fn text(topology: &Topology) -> String {
    let wiring = Wiring::of(topology);
    let mut out = format!("topology {}\n\n", topology.name);
    out.push_str(&lines(topology, &wiring));
    table(
        &mut out,
        &["view", "from", "bucket", "where"],
        topology.views.iter().map(|view| view_row(topology, view)),
    );
    table(
        &mut out,
        &["bucket", "scope", "granted by"],
        bucket_rows(topology).into_iter(),
    );
    table(
        &mut out,
        &["topic", "partitions", "retention"],
        topic_rows(&wiring).into_iter(),
    );
    let nodes = topology.nodes.iter().map(|node| {
        let roles = node.roles.iter().map(ToString::to_string).collect::<Vec<_>>();
        vec![node.name.clone(), roles.join(", ")]
    });
    table(&mut out, &["node", "runs"], nodes);
    out
}

/// Draws the data flow: sources on the left, merged before sync-views.
fn lines(topology: &Topology, wiring: &Wiring) -> String {
    let names = topology.names();
    let used = |topic: &str| {
        let views = wiring.processors.iter().filter(|p| p.name == SYNC_VIEWS);
        views
            .into_iter()
            .any(|p| p.inputs.iter().any(|input| input.topic == topic))
    };
    let mut rows: Vec<(String, bool)> = Vec::new();
    for source in &topology.sources {
        let (outside, kind) = match source.kind {
            SourceKind::Postgres => ("PostgreSQL", "postgres"),
            SourceKind::Http => ("backends", "http"),
        };
        let topic = names.change(source.name.as_str());
        let line = format!("{outside} ──► connector {} ({kind}) ──► {topic} ", source.name);
        rows.push((line, used(&topic)));
    }
    for event in &topology.events {
        let topic = names.event(event.name.as_str());
        rows.push((format!("backends ──► ingest ──► {topic} "), used(&topic)));
    }
    for processor in &topology.processors {
        let kind = match processor.work {
            Work::Aggregate(_) => "aggregate",
            Work::Join(_) => "join",
        };
        let inputs = processor
            .feeds()
            .into_iter()
            .map(|(_, feed)| topology.from_of(feed.input));
        let topic = names.processor(&processor.name);
        let line = format!(
            "{} ──► {kind} {} ──► {topic} ",
            inputs.collect::<Vec<_>>().join(" + "),
            processor.name
        );
        rows.push((line, used(&topic)));
    }
    let width = rows
        .iter()
        .map(|(line, _)| line.chars().count())
        .max()
        .unwrap_or_default();
    let (first, last) = (
        rows.iter().position(|(_, used)| *used),
        rows.iter().rposition(|(_, used)| *used),
    );
    let end = format!("─► {SYNC_VIEWS} ──► {} ──► edge ──► devices", names.view_log());
    let mut out = String::new();
    for (at, (line, used)) in rows.iter().enumerate() {
        let inside = first.is_some_and(|first| first < at) && last.is_some_and(|last| at < last);
        let pad = width - line.chars().count();
        let tail = match (*used, Some(at) == first, Some(at) == last) {
            (true, true, true) => "─".repeat(pad) + "─" + &end,
            (true, true, false) => "─".repeat(pad + 2) + "┐",
            (true, false, true) => "─".repeat(pad + 2) + "┴" + &end,
            (true, ..) => "─".repeat(pad + 2) + "┤",
            (false, ..) if inside => " ".repeat(pad + 2) + "│",
            (false, ..) => String::new(),
        };
        let _ = writeln!(out, "{}", format!("{line}{tail}").trim_end());
    }
    out
}

fn view_row(topology: &Topology, view: &View) -> Vec<String> {
    let filter = view.filter.as_ref().map_or("", |program| program.text());
    let filter = filter.split_whitespace().collect::<Vec<_>>().join(" ");
    vec![
        view.name.to_string(),
        topology.from_of(view.input),
        template(topology, view),
        filter,
    ]
}

fn template(topology: &Topology, view: &View) -> String {
    let columns = topology.columns_of(view.input);
    let part = |segment: &Segment| match segment {
        Segment::Literal(word) => word.clone(),
        Segment::Param(at) => format!("{{{}}}", columns.get(*at).map_or("", |column| column.name.as_str())),
    };
    view.bucket_name.iter().map(part).collect::<Vec<_>>().join(":")
}

fn bucket_rows(topology: &Topology) -> Vec<Vec<String>> {
    let row = |(at, bucket): (usize, &crate::checked::Bucket)| {
        let parts = bucket.pattern.parts();
        let part = |segment: &Segment| match segment {
            Segment::Literal(word) => word.clone(),
            Segment::Param(at) => match parts.get(*at) {
                Some(crate::template::Part::Param(name, _)) => format!("{{{name}}}"),
                _ => String::new(),
            },
        };
        let scope = bucket.scope.iter().map(part).collect::<Vec<_>>().join(":");
        let scope = if scope == bucket.pattern.to_string() {
            String::from("itself")
        } else {
            scope
        };
        let opened: Vec<String> = topology
            .memberships
            .iter()
            .filter(|membership| membership.bucket == at)
            .map(|membership| match &membership.issuer {
                Some(issuer) => format!("{} of {issuer}", membership.template),
                None => membership.template.to_string(),
            })
            .collect();
        vec![bucket.pattern.to_string(), scope, opened.join(", ")]
    };
    topology.buckets.iter().enumerate().map(row).collect()
}

fn topic_rows(wiring: &Wiring) -> Vec<Vec<String>> {
    let kept = |topic: &crate::wiring::Topic| match (topic.cleanup, topic.retention_ms) {
        (Cleanup::Delete, Some(-1)) => String::from("limited by size"),
        (Cleanup::Delete, Some(ms)) => format!("{} days", ms / 86_400_000),
        (Cleanup::Delete, None) => String::from("broker default"),
        (Cleanup::Compact, _) => String::from("compacted"),
    };
    wiring
        .topics
        .iter()
        .map(|topic| vec![topic.name.clone(), topic.partitions.to_string(), kept(topic)])
        .collect()
}

/// Appends a table with aligned columns. Appends nothing if there are no rows.
fn table(out: &mut String, header: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let mut all: Vec<Vec<String>> = vec![header.iter().map(ToString::to_string).collect()];
    all.extend(rows);
    if all.len() == 1 {
        return;
    }
    let width = |column: usize| {
        all.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..header.len())
        .map(|column| width(column).unwrap_or_default())
        .collect();
    out.push('\n');
    for row in &all {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let _ = writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

/// Draws the data flow as DOT, for `trunkline topology graph --format dot | dot -Tsvg`. Changelogs and dead-letter topics
/// are omitted.
pub fn dot(topology: &Topology) -> String {
    let wiring = Wiring::of(topology);
    let mut out = format!("digraph {} {{\n", quoted(&topology.name));
    out.push_str("  rankdir=LR;\n  node [fontname=\"sans-serif\", fontsize=11];\n  edge [fontname=\"sans-serif\", fontsize=9];\n");
    let hidden = |part: &Part| match part {
        Part::Topic(name) => wiring.topic(name).is_some_and(|topic| {
            matches!(
                topic.kind,
                TopicKind::Changelog | TopicKind::DeadLetter | TopicKind::Positions | TopicKind::Repartition
            )
        }),
        _ => false,
    };
    let links: Vec<_> = wiring
        .links
        .iter()
        .filter(|link| !hidden(&link.from) && !hidden(&link.to))
        .collect();
    let mut parts: Vec<&Part> = Vec::new();
    for part in links.iter().flat_map(|link| [&link.from, &link.to]) {
        if !parts.contains(&part) {
            parts.push(part);
        }
    }
    for part in parts {
        let shape = match part {
            Part::Outside(_) => "ellipse, style=dashed",
            Part::Topic(_) => "cylinder",
            _ => "box, style=rounded",
        };
        let _ = writeln!(out, "  {} [shape={shape}];", quoted(&part.to_string()));
    }
    for link in links {
        let label = match (&link.from, &link.to) {
            (Part::Topic(topic), Part::Processor(name)) if name == SYNC_VIEWS => views_of(topology, topic),
            _ => String::new(),
        };
        let (from, to) = (quoted(&link.from.to_string()), quoted(&link.to.to_string()));
        if label.is_empty() {
            let _ = writeln!(out, "  {from} -> {to};");
        } else {
            let _ = writeln!(out, "  {from} -> {to} [label={}];", quoted(&label));
        }
    }
    out.push_str("}\n");
    out
}

/// The names of the views of a topic.
fn views_of(topology: &Topology, topic: &str) -> String {
    let made = topology
        .views
        .iter()
        .filter(|view| topology.topic_of(view.input) == topic);
    made.map(|view| view.name.to_string()).collect::<Vec<_>>().join("\n")
}

/// A quoted DOT string.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use crate::samples::{PGBENCH, SHOP};
    use expect_test::expect;

    #[test]
    fn shop_as_text() {
        expect![[r#"
            topology shop

            backends ──► connector shop (http) ──► shop.change.shop ──┐
            backends ──► ingest ──► shop.event.delivery_moved ────────┴─► sync-views ──► shop.view.log ──► edge ──► devices
            backends ──► ingest ──► shop.event.order_viewed

            view           from                  bucket                  where
            catalog        shop.products         catalog                 !discontinued
            profile        shop.customers        customer:{id}
            orders         shop.orders           customer:{customer_id}  status != "draft"
            order_lines    shop.order_lines      customer:{customer_id}
            deliveries     event:delivery_moved  customer:{customer_id}
            to_pack        shop.orders           store:{store_id}        status in ["placed", "packed"]
            lines_to_pack  shop.order_lines      store:{store_id}

            bucket         scope   granted by
            customer:{id}  itself  customer:{sub}
            store:{id}     itself  store:{stores}
            catalog        itself  catalog

            topic                                                partitions  retention
            shop.change.shop                                     1           7 days
            shop.event.delivery_moved                            12          7 days
            shop.event.order_viewed                              12          7 days
            shop._trunkline.positions                            1           compacted
            shop._trunkline.members                              1           compacted
            shop.view.log                                        16          compacted
            shop.sync-views.change.shop.changelog.rows           1           compacted
            shop.change.shop.dlq                                 1           30 days
            shop.sync-views.event.delivery_moved.changelog.rows  12          compacted
            shop.event.delivery_moved.dlq                        12          30 days

            node    runs
            ingest  connector:shop, ingest, registry
            views   processor:sync-views
            edge-1  edge
            edge-2  edge
        "#]]
        .assert_eq(&super::text(&SHOP.check().into_result().unwrap()));
    }

    #[test]
    fn pgbench_as_text() {
        expect![[r#"
            topology pgbench

            PostgreSQL ──► connector bank (postgres) ──► pgbench.change.bank ──► sync-views ──► pgbench.view.log ──► edge ──► devices

            view      from                   bucket        where
            branches  bank.pgbench_branches  branch:{bid}
            tellers   bank.pgbench_tellers   branch:{bid}
            accounts  bank.pgbench_accounts  branch:{bid}
            history   bank.pgbench_history   branch:{bid}

            bucket        scope   granted by
            branch:{bid}  itself  branch:{branch}

            topic                                          partitions  retention
            pgbench.change.bank                            1           7 days
            pgbench._trunkline.positions                   1           compacted
            pgbench._trunkline.members                     1           compacted
            pgbench.view.log                               16          compacted
            pgbench.sync-views.change.bank.changelog.rows  1           compacted
            pgbench.change.bank.dlq                        1           30 days

            node       runs
            connector  connector:bank
            processor  processor:sync-views
            edge-1     edge
            edge-2     edge
        "#]]
        .assert_eq(&super::text(&PGBENCH.check().into_result().unwrap()));
    }

    #[test]
    fn streams_made_of_streams_as_text() {
        let streams = crate::samples::STREAMS.check().into_result().unwrap();
        expect![[r#"
            topology streams

            backends ──► connector shop (http) ──► streams.change.shop
            backends ──► ingest ──► streams.event.order_viewed
            shop.orders ──► aggregate orders_by_customer ──► streams.processor.orders_by_customer ───────────────────────┐
            processor:orders_by_customer ──► aggregate customers_by_orders ──► streams.processor.customers_by_orders ────┤
            shop.orders ──► aggregate orders_per_minute ──► streams.processor.orders_per_minute ─────────────────────────┤
            event:order_viewed + shop.customers ──► join views_with_customer ──► streams.processor.views_with_customer ──┴─► sync-views ──► streams.view.log ──► edge ──► devices

            view        from                           bucket                  where
            totals      processor:orders_by_customer   customer:{customer_id}
            all_totals  processor:orders_by_customer   office
            sizes       processor:customers_by_orders  office
            minutes     processor:orders_per_minute    office
            last_seen   processor:views_with_customer  office

            bucket         scope   granted by
            customer:{id}  itself  customer:{sub}
            office         itself  office

            topic                                                            partitions  retention
            streams.change.shop                                              1           7 days
            streams.event.order_viewed                                       3           7 days
            streams.processor.orders_by_customer                             3           compacted
            streams.processor.customers_by_orders                            2           compacted
            streams.customers_by_orders.repartition                          2           7 days
            streams.processor.orders_per_minute                              2           7 days
            streams.orders_per_minute.repartition                            2           limited by size
            streams.processor.views_with_customer                            3           7 days
            streams.views_with_customer.repartition.left                     3           7 days
            streams.views_with_customer.repartition.right                    3           7 days
            streams._trunkline.positions                                     1           compacted
            streams._trunkline.members                                       1           compacted
            streams.view.log                                                 16          compacted
            streams.sync-views.processor.orders_by_customer.changelog.rows   3           compacted
            streams.processor.orders_by_customer.dlq                         3           30 days
            streams.sync-views.processor.customers_by_orders.changelog.rows  2           compacted
            streams.processor.customers_by_orders.dlq                        2           30 days
            streams.sync-views.processor.orders_per_minute.changelog.rows    2           compacted
            streams.processor.orders_per_minute.dlq                          2           30 days
            streams.sync-views.processor.views_with_customer.changelog.rows  3           compacted
            streams.processor.views_with_customer.dlq                        3           30 days
            streams.orders_by_customer.changelog.groups                      1           compacted
            streams.change.shop.dlq                                          1           30 days
            streams.customers_by_orders.changelog.repartition                3           compacted
            streams.customers_by_orders.changelog.groups                     2           compacted
            streams.customers_by_orders.repartition.dlq                      2           30 days
            streams.orders_per_minute.changelog.repartition                  1           compacted
            streams.orders_per_minute.changelog.groups                       2           compacted
            streams.orders_per_minute.repartition.dlq                        2           30 days
            streams.views_with_customer.changelog.repartition.left           3           compacted
            streams.event.order_viewed.dlq                                   3           30 days
            streams.views_with_customer.changelog.pairs                      3           compacted
            streams.views_with_customer.repartition.left.dlq                 3           30 days
            streams.views_with_customer.changelog.repartition.right          1           compacted
            streams.views_with_customer.repartition.right.dlq                3           30 days

            node     runs
            ingest   connector:shop, ingest, registry
            streams  processor:orders_by_customer, processor:customers_by_orders, processor:orders_per_minute, processor:views_with_customer
            views    processor:sync-views
            edge-1   edge
        "#]].assert_eq(&super::text(&streams));
    }

    #[test]
    fn streams_made_of_streams_as_dot() {
        let streams = crate::samples::STREAMS.check().into_result().unwrap();
        expect![[r#"
            digraph "streams" {
              rankdir=LR;
              node [fontname="sans-serif", fontsize=11];
              edge [fontname="sans-serif", fontsize=9];
              "backends" [shape=ellipse, style=dashed];
              "connector shop" [shape=box, style=rounded];
              "streams.change.shop" [shape=cylinder];
              "ingest" [shape=box, style=rounded];
              "streams.event.order_viewed" [shape=cylinder];
              "streams.processor.orders_by_customer" [shape=cylinder];
              "sync-views" [shape=box, style=rounded];
              "streams.processor.customers_by_orders" [shape=cylinder];
              "streams.processor.orders_per_minute" [shape=cylinder];
              "streams.processor.views_with_customer" [shape=cylinder];
              "streams.view.log" [shape=cylinder];
              "orders_by_customer" [shape=box, style=rounded];
              "customers_by_orders" [shape=box, style=rounded];
              "orders_per_minute" [shape=box, style=rounded];
              "views_with_customer" [shape=box, style=rounded];
              "edge" [shape=box, style=rounded];
              "devices" [shape=ellipse, style=dashed];
              "backends" -> "connector shop";
              "connector shop" -> "streams.change.shop";
              "backends" -> "ingest";
              "ingest" -> "streams.event.order_viewed";
              "streams.processor.orders_by_customer" -> "sync-views" [label="totals\nall_totals"];
              "streams.processor.customers_by_orders" -> "sync-views" [label="sizes"];
              "streams.processor.orders_per_minute" -> "sync-views" [label="minutes"];
              "streams.processor.views_with_customer" -> "sync-views" [label="last_seen"];
              "sync-views" -> "streams.view.log";
              "streams.change.shop" -> "orders_by_customer";
              "orders_by_customer" -> "streams.processor.orders_by_customer";
              "streams.processor.orders_by_customer" -> "customers_by_orders";
              "customers_by_orders" -> "streams.processor.customers_by_orders";
              "streams.change.shop" -> "orders_per_minute";
              "orders_per_minute" -> "streams.processor.orders_per_minute";
              "streams.event.order_viewed" -> "views_with_customer";
              "streams.change.shop" -> "views_with_customer";
              "views_with_customer" -> "streams.processor.views_with_customer";
              "streams.view.log" -> "edge";
              "edge" -> "devices";
            }
        "#]]
        .assert_eq(&super::dot(&streams));
    }

    #[test]
    fn shop_as_dot() {
        expect![[r#"
            digraph "shop" {
              rankdir=LR;
              node [fontname="sans-serif", fontsize=11];
              edge [fontname="sans-serif", fontsize=9];
              "backends" [shape=ellipse, style=dashed];
              "connector shop" [shape=box, style=rounded];
              "shop.change.shop" [shape=cylinder];
              "ingest" [shape=box, style=rounded];
              "shop.event.delivery_moved" [shape=cylinder];
              "shop.event.order_viewed" [shape=cylinder];
              "sync-views" [shape=box, style=rounded];
              "shop.view.log" [shape=cylinder];
              "edge" [shape=box, style=rounded];
              "devices" [shape=ellipse, style=dashed];
              "backends" -> "connector shop";
              "connector shop" -> "shop.change.shop";
              "backends" -> "ingest";
              "ingest" -> "shop.event.delivery_moved";
              "ingest" -> "shop.event.order_viewed";
              "shop.change.shop" -> "sync-views" [label="catalog\nprofile\norders\norder_lines\nto_pack\nlines_to_pack"];
              "shop.event.delivery_moved" -> "sync-views" [label="deliveries"];
              "sync-views" -> "shop.view.log";
              "shop.view.log" -> "edge";
              "edge" -> "devices";
            }
        "#]]
        .assert_eq(&super::dot(&SHOP.check().into_result().unwrap()));
    }
}
