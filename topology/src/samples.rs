//! Sample topologies that are compiled into the program. Each passes the check without warnings.

use crate::files::Embedded;
use crate::load::check;
use crate::outcome::Outcome;

/// A topology with its schema files.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// File name in messages.
    pub name: &'static str,
    /// The text of `topology.toml`.
    pub text: &'static str,
    /// The schema files.
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

/// The four tables of pgbench, with one bucket per branch.
pub const PGBENCH: Sample = Sample {
    name: "pgbench.toml",
    text: include_str!("../samples/pgbench.toml"),
    files: Embedded(&[]),
};

/// Aggregates and joins over orders, customers and events of a shop.
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
    fn samples_pass_without_warnings() {
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
    fn shop_memberships_and_buckets() {
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
