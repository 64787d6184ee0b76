//! Names of topics, consumer groups and transactional ids.
//!
//! All of them begin with the name of the topology and a dot. A topology name contains no dot, so the names of two
//! topologies differ, and one prefixed ACL is sufficient for a topology. Trunkline's internal topics begin with
//! `_trunkline` after the prefix, which no declared name does. Only the topic of the schema registry, `_schemas`, is
//! shared by topologies.

/// Name of the built-in processor that writes the views.
pub const SYNC_VIEWS: &str = "sync-views";

/// Topics that versions without a prefix created. A log that contains one of them was written by such a version.
const UNPREFIXED_TOPICS: [&str; 3] = ["view.log", "connect.positions", "members"];
/// Start of the changelogs, without the prefix, of versions in which sync-views was one application.
const SINGLE_SYNC_VIEWS: &str = "sync-views.changelog.";

/// Derives the names of one topology.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    topology: String,
}

impl Names {
    /// Creates the names of the topology with this name.
    pub fn of(topology: impl Into<String>) -> Self {
        Names {
            topology: topology.into(),
        }
    }

    /// Creates the names of the topology to which a topic, group or transactional id belongs; `None` if the name has no
    /// prefix.
    pub fn owning(name: &str) -> Option<Self> {
        name.split_once('.').map(|(topology, _)| Names::of(topology))
    }

    /// Returns the first of these topics that an older version created with another name. This version would not find
    /// its records.
    pub fn outdated<'t>(topics: impl IntoIterator<Item = &'t str>) -> Option<&'t str> {
        let single = |topic: &str| {
            topic
                .split_once('.')
                .is_some_and(|(_, local)| local.starts_with(SINGLE_SYNC_VIEWS))
        };
        topics
            .into_iter()
            .find(|topic| UNPREFIXED_TOPICS.contains(topic) || single(topic))
    }

    /// The prefix of all names: the topology's name and a dot.
    pub fn prefix(&self) -> String {
        self.with("")
    }

    /// A name without the prefix: `change.shop` for `shop.change.shop`.
    pub fn local<'n>(&self, name: &'n str) -> &'n str {
        let rest = name.strip_prefix(self.topology.as_str());
        rest.and_then(|rest| rest.strip_prefix('.')).unwrap_or(name)
    }

    /// Topic of the changes of a source.
    pub fn change(&self, source: &str) -> String {
        self.with(&format!("change.{source}"))
    }

    /// Topic of an event.
    pub fn event(&self, event: &str) -> String {
        self.with(&format!("event.{event}"))
    }

    /// Output topic of a declarative processor.
    pub fn processor(&self, processor: &str) -> String {
        self.with(&format!("processor.{processor}"))
    }

    /// Topic of all views.
    pub fn view_log(&self) -> String {
        self.with("view.log")
    }

    /// Topic of the admin addresses of processes.
    pub fn members(&self) -> String {
        self.with("_trunkline.members")
    }

    /// Topic of the positions of connectors.
    pub fn positions(&self) -> String {
        self.with("_trunkline.positions")
    }

    /// Consumer group of a processor, which is the name of its application. The runtime derives changelogs, transactional
    /// ids and static member names from it.
    pub fn application(&self, processor: &str) -> String {
        self.with(processor)
    }

    /// Consumer group of sync-views for one of its input topics. Each input has its own application, so that it is read
    /// by other threads and processes than the other inputs, and stops alone.
    pub fn sync_views(&self, input: &str) -> String {
        self.with(&format!("{SYNC_VIEWS}.{}", self.local(input)))
    }

    /// Consumer group of the edge of a node. An edge is not a member: it reads all partitions, and commits its position so
    /// that its lag can be seen.
    pub fn edge(&self, node: &str) -> String {
        self.with(&format!("edge.{node}"))
    }

    /// The input topic to which a changelog of sync-views belongs; `None` for any other topic.
    pub fn sync_views_input(&self, changelog: &str) -> Option<String> {
        let local = changelog.strip_prefix(&self.with(SYNC_VIEWS))?.strip_prefix('.')?;
        let suffix = format!(".changelog.{}", crate::wiring::SYNC_VIEWS_STORE);
        local.strip_suffix(&suffix).map(|input| self.with(input))
    }

    /// Changelog topic of a store of an application, named by [`Names::application`] or [`Names::sync_views`].
    pub fn changelog(application: &str, store: &str) -> String {
        format!("{application}.changelog.{store}")
    }

    /// Repartition topic of a processor with one input.
    pub fn repartition(&self, processor: &str) -> String {
        self.with(&format!("{processor}.repartition"))
    }

    /// Repartition topic of one side, `left` or `right`, of a join.
    pub fn repartition_side(&self, processor: &str, side: &str) -> String {
        self.with(&format!("{processor}.repartition.{side}"))
    }

    /// Dead-letter topic of a topic.
    pub fn dead_letters(topic: &str) -> String {
        format!("{topic}.dlq")
    }

    /// Transactional id of a connector.
    pub fn connector(&self, connector: &str) -> String {
        self.with(&format!("connector.{connector}"))
    }

    /// Transactional id of a replay. It begins with the prefix of the topic that is read.
    pub fn replay(from_topic: &str, to_topic: &str) -> String {
        format!("{from_topic}.replay.{to_topic}")
    }

    /// Transactional id of a redrive from a dead-letter topic.
    pub fn redrive(dead_letters: &str) -> String {
        format!("{dead_letters}.redrive")
    }

    fn with(&self, local: &str) -> String {
        format!("{}.{local}", self.topology)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::ids::NAME_CHARS_MAX;

    /// All names that are derived from declared names of this length.
    fn all(names: &Names, declared: &str) -> Vec<String> {
        let stores = [
            names.local(&names.processor(declared)).to_owned(),
            "repartition.right".to_owned(),
        ];
        let mut all = vec![
            names.change(declared),
            names.event(declared),
            names.processor(declared),
            names.view_log(),
            names.members(),
            names.positions(),
            names.application(declared),
            names.repartition(declared),
            names.repartition_side(declared, "right"),
            names.connector(declared),
            names.edge(declared),
        ];
        all.extend(
            stores
                .iter()
                .map(|store| Names::changelog(&names.application(declared), store)),
        );
        let sync_views = names.sync_views(&names.processor(declared));
        all.push(Names::changelog(&sync_views, crate::wiring::SYNC_VIEWS_STORE));
        all.push(sync_views);
        let dead_letters: Vec<String> = all.iter().map(|topic| Names::dead_letters(topic)).collect();
        all.extend(dead_letters);
        all
    }

    #[test]
    fn longest_names_are_valid_in_kafka() {
        let longest = "a".repeat(NAME_CHARS_MAX);
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        for name in all(&Names::of(longest.as_str()), &longest) {
            assert!(name.len() <= 249 && name.chars().all(legal), "{name}");
        }
    }

    #[test]
    fn two_topologies_share_no_name() {
        let (shop, stage) = (Names::of("shop"), Names::of("shop-stage"));
        let of_stage = all(&stage, "db");
        for name in all(&shop, "db") {
            assert!(name.starts_with("shop.") && !of_stage.contains(&name), "{name}");
            assert_eq!(Names::owning(&name), Some(shop.clone()));
        }
        assert!(of_stage.iter().all(|name| !name.starts_with(&shop.prefix())));
    }

    #[test]
    fn changelog_of_sync_views_names_its_input() {
        let names = Names::of("shop");
        for input in [names.change("db"), names.event("a.b"), names.processor("totals")] {
            let changelog = Names::changelog(&names.sync_views(&input), crate::wiring::SYNC_VIEWS_STORE);
            assert_eq!(names.sync_views_input(&changelog), Some(input));
            assert_eq!(Names::of("shop2").sync_views_input(&changelog), None);
        }
        for other in [
            "shop.change.db",
            "shop.totals.changelog.rows",
            "shop.sync-views.change.db",
        ] {
            assert_eq!(names.sync_views_input(other), None, "{other}");
        }
    }

    #[test]
    fn local_name_has_no_prefix() {
        let names = Names::of("shop");
        assert_eq!(names.local("shop.change.shop"), "change.shop");
        assert_eq!(names.local("shopping.change.shop"), "shopping.change.shop");
        assert_eq!(names.local("shop"), "shop");
    }

    #[test]
    fn topics_of_older_versions_are_recognized() {
        assert_eq!(Names::outdated(["_schemas", "view.log"]), Some("view.log"));
        let current = [
            "_schemas",
            "shop.view.log",
            "a.members",
            "shop.sync-views.change.shop.changelog.rows",
        ];
        assert_eq!(Names::outdated(current), None);
        let single = "shop.sync-views.changelog.change.shop";
        assert_eq!(Names::outdated(["shop.view.log", single]), Some(single));
    }
}
