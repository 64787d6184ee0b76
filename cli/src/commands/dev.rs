//! `trunkline dev`: all roles in one process, for development, tests and small deployments.

mod shop;
mod slots;

use crate::args::{self, Engine, Output};
use crate::backends::{self, Backends};
use crate::config::{self, Kafka, Processors};
use crate::connect_api::RunningConnectors;
use crate::data_dir::{self, DataDir};
use crate::node::{self, Addresses, Plan};
use crate::print;
use crate::running_dev::{self, RunningDev};
use anyhow::{Context, Result, bail};
use connectors::ingest::{self, Credential};
use connectors::sources::postgres;
use edge::config::Algorithm;
use edge::token::{DEV_AUDIENCE, DevKey, TokenRequest};
use event_log::SharedEventLog;
use event_log::embedded::Durability;
use service::{Secret, Service, SharedClock, Tasks, clock};
use slots::UsedSlot;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use topology::{Names, Role, SourceKind, Topology};

/// File with the token for the ingest listener, in the data directory.
const INGEST_TOKEN_FILE: &str = "ingest.token";
const MASK_KEY_FILE: &str = "mask.key";
/// Lifetime of the printed token, in hours.
const TOKEN_HOURS: i64 = 12;

/// Runs everything until SIGTERM or Ctrl-C.
pub fn run(output: Output, dev: &args::Dev) -> Result<()> {
    // From here on the absolute path is used: with `--data . --fresh`, the working directory is the renamed directory.
    let (data, previous) = claim(dev)?;
    let dev = &args::Dev { data, ..dev.clone() };
    let (topology, is_sample) = topology(dev)?;
    if output != Output::Json {
        print_start(dev, is_sample);
    }
    let key = DevKey::open(&dev.data, Algorithm::HS256).context("cannot open the development key")?;
    let ingest_token = stored_secret(&dev.data, INGEST_TOKEN_FILE)?;
    let view_log = topology.names().view_log();
    let mut plan = plan(dev, topology, &key, &ingest_token)?;
    for (name, config) in &mut plan.connectors {
        config.previous_objects = slots::of_connector(&previous, name);
    }
    let running = plan.running.clone();
    let open = opener(dev)?;
    let token = key.sign(
        &TokenRequest {
            subject: shop::CUSTOMER.into(),
            audience: DEV_AUDIENCE.into(),
            claims: [
                ("stores".to_owned(), serde_json::json!([1])),
                ("branch".to_owned(), serde_json::json!(1)),
            ]
            .into_iter()
            .collect(),
            expires_in_s: TOKEN_HOURS * 3600,
        },
        clock::system().now_ms() / 1000,
    )?;
    let (data, orders_per_s) = (dev.data.clone(), dev.orders_per_s);
    let ended = Service::new().run(move |tasks| async move {
        let addresses = node::start(plan, open, &tasks).await?;
        write_running_dev(&data, &addresses)?;
        slots::print_replaced(&running, &previous);
        slots::record(&tasks, data, running);
        let posts = addresses.ingest.filter(|_| is_sample && orders_per_s > 0.0);
        if let Some(ingest) = posts {
            start_generator(&tasks, ingest, &ingest_token, orders_per_s);
        }
        if output == Output::Json {
            print::json(&overview(&addresses, &token, &ingest_token))?;
        } else {
            print_overview(&addresses, &token, &ingest_token, is_sample);
            print_next(&view_log);
        }
        Ok::<(), anyhow::Error>(())
    });
    slots::print_remaining(&dev.data);
    ended?;
    Ok(())
}

/// Locks the data directory until the process exits; with `--fresh`, replaces it with an empty directory first. Returns the
/// slots that were used with the replaced directory too.
fn claim(dev: &args::Dev) -> Result<(PathBuf, Vec<UsedSlot>)> {
    let mut data = DataDir::claim(&dev.data, data_dir::OPTION)?;
    let mut previous = Vec::new();
    if dev.fresh {
        let (new, aside) = data.start_over(data_dir::OPTION)?;
        data = new;
        if let Some(aside) = aside {
            previous = slots::read(&aside);
            eprintln!(
                "Created an empty data directory; the previous contents of {} are in {}.",
                dev.data.display(),
                aside.display()
            );
        }
    }
    Ok((data.keep(), previous))
}

/// The topology, and whether it is the sample shop, for which the generator creates orders.
fn topology(dev: &args::Dev) -> Result<(Topology, bool)> {
    let (mut topology, mut is_sample) = match &dev.topology {
        Some(file) => (super::topology::load(file)?, false),
        None => (super::topology::accept(topology::samples::SHOP.check())?, true),
    };
    if dev.postgres.is_some() {
        match topology.sources.as_mut_slice() {
            [only] => only.kind = SourceKind::Postgres,
            all if all.iter().any(|s| s.kind == SourceKind::Postgres) => {}
            _ => bail!(
                "cannot use --postgres: the topology has several connectors, but none of kind postgres; declare one"
            ),
        }
        is_sample = false;
    } else if dev.config.is_none() && topology.sources.iter().any(|s| s.kind == SourceKind::Postgres) {
        bail!("the database URL of the connector of kind postgres is missing; set it with --postgres or --config");
    }
    Ok((topology, is_sample))
}

/// All roles of the topology.
fn all_roles(topology: &Topology) -> Vec<Role> {
    let mut roles: Vec<Role> = topology
        .sources
        .iter()
        .map(|s| Role::Connector(connector_name(s)))
        .collect();
    roles.extend(topology.processors.iter().map(|p| Role::Processor(p.name.clone())));
    roles.extend([
        Role::Processor(topology::SYNC_VIEWS.into()),
        Role::Edge,
        Role::Ingest,
        Role::Registry,
    ]);
    roles
}

/// Settings of the connectors of kind postgres.
fn connectors(dev: &args::Dev, topology: &Topology) -> Result<BTreeMap<String, postgres::Config>> {
    let mut configured = match &dev.config {
        Some(file) => config::read_connectors(file)?,
        None => BTreeMap::new(),
    };
    let sources = topology.sources.iter().filter(|s| s.kind == SourceKind::Postgres);
    let config = |name: String| {
        let config = match &dev.postgres {
            Some(url) => {
                let mask_key = stored_secret(&dev.data, MASK_KEY_FILE)?;
                serde_json::from_value(serde_json::json!({ "url": url, "mask_key": mask_key }))?
            }
            None => configured
                .remove(&name)
                .with_context(|| format!("[connectors.{name}] is missing in the file of --config"))?,
        };
        Ok((name, config))
    };
    sources.map(|s| s.name.to_string()).map(config).collect()
}

fn plan(dev: &args::Dev, topology: Topology, key: &DevKey, ingest_token: &str) -> Result<Plan> {
    let roles = all_roles(&topology);
    let connectors = connectors(dev, &topology)?;
    let store = match dev.store {
        Engine::Fjall => config::Engine::Fjall,
        Engine::Sled => config::Engine::Sled,
        Engine::Memory => config::Engine::Memory,
    };
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let edge_store = edge::config::StoreConfig {
        engine: match dev.store {
            Engine::Fjall => edge::config::Engine::Fjall,
            Engine::Sled => edge::config::Engine::Sled,
            Engine::Memory => edge::config::Engine::Memory,
        },
        ..Default::default()
    };
    let edge = edge::Config {
        listen: loopback(dev.port),
        issuers: vec![key.issuer(DEV_AUDIENCE)],
        data_dir: dev.data.clone(),
        store: edge_store,
        ..edge::Config::default()
    };
    let credential = Credential::with_token("dev", Secret::new(ingest_token.to_owned()), vec!["*".into()]);
    let ingest = ingest::Config::on(loopback(dev.ingest_port), vec![credential]);
    Ok(Plan {
        name: "dev".into(),
        topology,
        roles,
        data: dev.data.clone(),
        admin: service::admin::Config::on(loopback(dev.admin_port)),
        connectors,
        ingest: Some(ingest),
        edge: Some(edge),
        processors: Processors {
            store,
            ..Processors::default()
        },
        registry: Some(node::RegistryListener::on(loopback(0))),
        running: RunningConnectors::default(),
    })
}

fn connector_name(source: &topology::Source) -> schemas::ids::ConnectorName {
    schemas::ids::ConnectorName::new(source.name.as_str())
        .expect("source names and connector names follow the same rule")
}

/// Returns a function that opens the log and the registry. The function is called again while Kafka is unavailable; the
/// embedded log is opened once, here.
fn opener(dev: &args::Dev) -> Result<impl Fn() -> Result<Backends> + Send + Sync + Clone + 'static> {
    let clock = clock::system();
    let embedded = match &dev.kafka {
        Some(_) => None,
        None => Some(embedded_log(dev, &clock)?),
    };
    let kafka = dev.kafka.clone().map(|brokers| Kafka {
        brokers,
        settings: BTreeMap::new(),
        replication: None,
    });
    let registry = config::Registry::at(dev.registry.clone());
    let shared = Arc::new((embedded, kafka, registry));
    Ok(move || {
        let (embedded, kafka, registry) = &*shared;
        let log = match (embedded, kafka) {
            (Some(log), _) => log.clone(),
            (None, Some(kafka)) => backends::kafka_log(kafka)?,
            (None, None) => unreachable!("without --kafka the embedded log is open"),
        };
        let registry = backends::registry(registry, &log)?;
        Ok(Backends::new(log, registry, clock.clone(), None))
    })
}

/// Opens the embedded log of the data directory. Fails if the log was written by a version with other topic names, because
/// topics would be created again, empty, in addition to the old ones.
fn embedded_log(dev: &args::Dev, clock: &SharedClock) -> Result<SharedEventLog> {
    let data = &dev.data;
    let log = backends::embedded_log(data, clock, durability(dev)).context("cannot open the embedded log")?;
    let topics = log.topics().context("cannot list the topics of the embedded log")?;
    if let Some(topic) = Names::outdated(topics.iter().map(String::as_str)) {
        bail!(
            "the log in {} has topic {topic}, which this version names differently: an older version wrote it, and this \
             version cannot continue with it; start over with `trunkline dev --fresh`, which renames the directory, or \
             choose another one with --data DIR",
            data.join("log").display()
        );
    }
    Ok(log)
}

fn durability(dev: &args::Dev) -> Durability {
    match dev.durability {
        args::Durability::Os => Durability::Os,
        args::Durability::Interval => Durability::Interval(Duration::from_millis(dev.sync_interval_ms)),
        args::Durability::Commit => Durability::Commit,
    }
}

/// A secret that is created at the first start and stored in the data directory: the token for the ingest listener, and
/// the key of hashed columns.
fn stored_secret(data: &Path, file: &str) -> Result<String> {
    let file = data.join(file);
    if let Ok(token) = std::fs::read_to_string(&file) {
        return Ok(token.trim().to_owned());
    }
    let token = format!("dev-{}", uuid::Uuid::new_v4().simple());
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let written = options
        .open(&file)
        .and_then(|mut file| file.write_all(token.as_bytes()));
    written.with_context(|| format!("cannot write {}", file.display()))?;
    Ok(token)
}

fn write_running_dev(data: &Path, addresses: &Addresses) -> Result<()> {
    let url = |a: Option<SocketAddr>| a.map(|a| format!("http://{a}")).unwrap_or_default();
    let running = RunningDev {
        admin: url(Some(addresses.admin)),
        edge: url(addresses.edge),
        ingest: url(addresses.ingest),
        pid: std::process::id(),
    };
    running_dev::write(data, &running)
}

fn start_generator(tasks: &Tasks, ingest: SocketAddr, token: &str, orders_per_s: f64) {
    let (drain, url) = (tasks.drain(), format!("http://{ingest}/v1/ingest/change.shop"));
    let token = token.to_owned();
    tasks.spawn("generator", async move {
        shop::generate(&url, &token, orders_per_s, &drain).await
    });
}

/// Prints what will run. Called before the start.
fn print_start(dev: &args::Dev, is_sample: bool) {
    let topology = match &dev.topology {
        Some(file) => file.display().to_string(),
        None if is_sample => "sample shop".to_owned(),
        None => "sample shop, with rows from the database".to_owned(),
    };
    let log = dev
        .kafka
        .as_ref()
        .map_or_else(|| "embedded".to_owned(), |brokers| format!("Kafka at {brokers}"));
    println!("Starting Trunkline {} for development.\n", env!("CARGO_PKG_VERSION"));
    println!("  topology    {topology}");
    println!("  log         {log}");
    println!("  data        {}", dev.data.display());
    if is_sample && dev.orders_per_s > 0.0 {
        println!("  generator   {} orders per second", dev.orders_per_s);
    }
    println!();
}

/// The overview as JSON.
fn overview(addresses: &Addresses, token: &str, ingest_token: &str) -> serde_json::Value {
    let url = |address: Option<SocketAddr>| address.map(|address| format!("http://{address}"));
    serde_json::json!({
        "devices": url(addresses.edge),
        "backends": url(addresses.ingest),
        "operators": url(Some(addresses.admin)),
        "registry": url(addresses.registry),
        "token": token,
        "ingest_token": ingest_token,
    })
}

/// Printed after the start: addresses, a token, and requests to try.
fn print_overview(addresses: &Addresses, token: &str, ingest_token: &str, is_sample: bool) {
    let url = |address: Option<SocketAddr>| address.map_or_else(|| "-".into(), |a| format!("http://{a}"));
    let (edge, ingest) = (url(addresses.edge), url(addresses.ingest));
    let admin = format!("http://{}", addresses.admin);
    println!("\nTrunkline is running. Press Ctrl-C to stop; the next start continues with the same data.\n");
    println!("  devices     {edge}/v1/sync   (API description: {edge}/openapi.json)");
    println!("  backends    {ingest}/v1/ingest/TOPIC");
    println!("  operators   {admin}/readyz   {admin}/metrics");
    println!("  registry    {}", url(addresses.registry));
    println!(
        "\nSync as a device of customer {}. The token is valid for {TOKEN_HOURS} hours:\n",
        shop::CUSTOMER
    );
    println!("  TOKEN={token}");
    println!("  curl -s {edge}/v1/sync -H \"Authorization: Bearer $TOKEN\" -H 'Trunkline-Device: phone-1'");
    if is_sample {
        let row = format!(r#"{{"id":{},"name":"Ada"}}"#, shop::CUSTOMER);
        println!("\nChange a row as a backend, then repeat the request above:\n");
        println!("  curl -s {ingest}/v1/ingest/change.shop -H 'Authorization: Bearer {ingest_token}' \\");
        println!(r#"    -d '{{"changes":[{{"table":"customers","op":"put","row":{row}}}]}}'"#);
    }
}

/// Commands to try next.
fn print_next(view_log: &str) {
    let commands = [
        (
            format!("topics tail {view_log} --follow"),
            "watch the records that devices receive",
        ),
        (String::from("token --sub 2"), "create a token for another customer"),
        (String::from("doctor"), "check that everything works"),
        (
            String::from("init --postgres URL"),
            "generate a topology from your own database",
        ),
    ];
    let width = commands
        .iter()
        .map(|(command, _)| command.len())
        .max()
        .unwrap_or_default();
    println!("\nNext:\n");
    for (command, purpose) in commands {
        println!("  trunkline {command:width$}    {purpose}");
    }
    println!();
}
