//! Topologies that are part of the program.
//!
//! Guarantees: each passes the check without a warning (a test).
//! Never: a sample that only documentation knows.

use crate::files::Embedded;
use crate::load::check;
use crate::outcome::Outcome;

/// A topology with the schema files that it names.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// What it is called in messages.
    pub name: &'static str,
    /// The text of `topology.toml`.
    pub text: &'static str,
    /// The schema files: paths relative to it, and texts.
    pub files: Embedded,
}

/// A small shop: customers, products, orders, order lines, and deliveries as events.
pub const SHOP: Sample = Sample {
    name: "topology.toml",
    text: include_str!("../topology.toml"),
    files: Embedded(&[(
        "schemas/delivery_moved.avsc",
        include_str!("../schemas/delivery_moved.avsc"),
    )]),
};

/// pgbench's four tables, bucketed by branch.
pub const PGBENCH: Sample = Sample {
    name: "pgbench.toml",
    text: include_str!("../samples/pgbench.toml"),
    files: Embedded(&[]),
};

/// Aggregates and joins over a shop's orders, customers and events.
pub const STREAMS: Sample = Sample {
    name: "streams.toml",
    text: include_str!("../samples/streams.toml"),
    files: Embedded(&[]),
};

impl Sample {
    /// Checks the sample.
    pub fn check(&self) -> Outcome {
        check(self.name, self.text, &self.files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_samples_pass_without_a_warning() {
        for sample in [SHOP, PGBENCH, STREAMS] {
            let outcome = sample.check();
            assert!(
                outcome.topology.is_some() && outcome.report.warnings() == 0,
                "{}",
                outcome.report.render(false)
            );
        }
    }

    #[test]
    fn the_shop_opens_buckets_by_claims_and_keeps_lines_with_their_order() {
        let shop = SHOP.check().into_result().unwrap();
        let claims = serde_json::json!({"sub": "7", "stores": [1, 2]});
        let buckets = shop.buckets_of("shop", claims.as_object().unwrap()).unwrap();
        assert_eq!(buckets, ["catalog", "customer:7", "store:1", "store:2"]);
        assert_eq!(shop.scope_of("customer:7").as_deref(), Some("customer:7"));
        let of = |name: &str| shop.views.iter().find(|view| view.name.as_str() == name).unwrap();
        assert_eq!(of("orders").bucket, of("order_lines").bucket);
        assert_eq!(of("to_pack").fields[2].name, "customer_note");
    }
}
