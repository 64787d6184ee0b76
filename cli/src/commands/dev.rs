//! `trunkline dev`: everything in one process, for a first look, for tests, for a small deployment.

mod shop;

use crate::args::{self, Engine};
use crate::backends::{self, Backends};
use crate::config::{self, Kafka, Processors};
use crate::data_dir::{self, DataDir};
use crate::node::{self, Addresses, Plan};
use anyhow::{Context, Result, bail};
use connectors::ingest::{self, Credential};
use connectors::sources::postgres;
use edge::config::Algorithm;
use edge::token::{DEV_AUDIENCE, DevKey, TokenRequest};
use service::{Secret, Service, Tasks, clock};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use topology::{Role, SourceKind, Topology};

/// File with the token of the backends' listener.
const INGEST_TOKEN_FILE: &str = "ingest.token";

/// Runs everything until SIGTERM or Ctrl-C.
pub fn run(dev: &args::Dev) -> Result<()> {
    // From here on the absolute path: with `--data . --fresh` the working directory is the one that was moved.
    let dev = &args::Dev {
        data: claim(dev)?,
        ..dev.clone()
    };
    let (topology, sample) = topology(dev)?;
    let key = DevKey::open(&dev.data, Algorithm::HS256).context("the development key")?;
    let ingest_token = ingest_token(&dev.data)?;
    let plan = plan(dev, topology, &key, &ingest_token)?;
    let open = opener(dev)?;
    let token = key.mint(
        &TokenRequest {
            subject: shop::CUSTOMER.into(),
            audience: DEV_AUDIENCE.into(),
            claims: [
                ("stores".to_owned(), serde_json::json!([1])),
                ("branch".to_owned(), serde_json::json!(1)),
            ]
            .into_iter()
            .collect(),
            expires_in_s: 12 * 3600,
        },
        clock::system().now_ms() / 1000,
    )?;
    let (data, orders_per_s) = (dev.data.clone(), dev.orders_per_s);
    Service::new().run(move |tasks| async move {
        let addresses = node::start(plan, open, &tasks).await?;
        say_running(&data, &addresses)?;
        let posts = addresses.ingest.filter(|_| sample && orders_per_s > 0.0);
        if let Some(ingest) = posts {
            start_generator(&tasks, ingest, &ingest_token, orders_per_s);
        }
        print_page(&addresses, &token, &ingest_token, sample);
        Ok::<(), anyhow::Error>(())
    })?;
    Ok(())
}

/// Locks the data directory for the life of the process, and starts a new one if `--fresh` is set.
fn claim(dev: &args::Dev) -> Result<PathBuf> {
    let mut data = DataDir::claim(&dev.data, data_dir::OPTION)?;
    if dev.fresh {
        let (new, aside) = data.start_over(data_dir::OPTION)?;
        data = new;
        if let Some(aside) = aside {
            eprintln!(
                "starting with an empty data directory; the previous contents of {} are in {}",
                dev.data.display(),
                aside.display()
            );
        }
    }
    Ok(data.keep())
}

/// The topology, and whether it is the sample whose tables the generator fills.
fn topology(dev: &args::Dev) -> Result<(Topology, bool)> {
    let (mut topology, mut sample) = match &dev.topology {
        Some(file) => (super::topology::load(file)?, false),
        None => (super::topology::accept(topology::samples::SHOP.check())?, true),
    };
    if dev.postgres.is_some() {
        match topology.sources.as_mut_slice() {
            [only] => only.kind = SourceKind::Postgres,
            all if all.iter().any(|s| s.kind == SourceKind::Postgres) => {}
            _ => bail!("--postgres: the topology has several connectors and none of kind postgres"),
        }
        sample = false;
    } else if topology.sources.iter().any(|s| s.kind == SourceKind::Postgres) {
        bail!("the topology reads a database: give its URL with --postgres");
    }
    Ok((topology, sample))
}

/// Everything that the topology has.
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

fn plan(dev: &args::Dev, topology: Topology, key: &DevKey, ingest_token: &str) -> Result<Plan> {
    let roles = all_roles(&topology);
    let connectors: BTreeMap<String, postgres::Config> = match &dev.postgres {
        Some(url) => {
            let config = || serde_json::from_value::<postgres::Config>(serde_json::json!({ "url": url }));
            let sources = topology.sources.iter().filter(|s| s.kind == SourceKind::Postgres);
            sources
                .map(|s| Ok((s.name.to_string(), config()?)))
                .collect::<Result<_>>()?
        }
        None => BTreeMap::new(),
    };
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
        cursor_keys: Vec::new(),
        data_dir: dev.data.clone(),
        store: edge_store,
        limits: Default::default(),
    };
    let credential = Credential {
        name: "dev".into(),
        token: Secret::new(ingest_token.to_owned()),
        topics: vec!["*".into()],
    };
    let ingest = ingest::Config {
        listen: loopback(dev.ingest_port),
        credentials: vec![credential],
        body_bytes_max: 1 << 20,
    };
    Ok(Plan {
        name: "dev".into(),
        topology,
        roles,
        data: dev.data.clone(),
        admin: service::admin::Config {
            listen: loopback(dev.admin_port),
            advertise: None,
        },
        connectors,
        ingest: Some(ingest),
        edge: Some(edge),
        processors: Processors {
            store,
            ..Processors::default()
        },
        registry_listen: Some(loopback(0)),
    })
}

fn connector_name(source: &topology::Source) -> schemas::ids::ConnectorName {
    schemas::ids::ConnectorName::new(source.name.as_str()).expect("a source is named as its connector")
}

/// Opens the log and the registry once; later calls give the same ones.
fn opener(dev: &args::Dev) -> Result<impl Fn() -> Result<Backends> + Send + Sync + Clone + 'static> {
    let clock = clock::system();
    let embedded = match &dev.kafka {
        Some(_) => None,
        None => Some(backends::embedded_log(&dev.data, &clock).context("open the embedded log")?),
    };
    let kafka = dev.kafka.clone().map(|brokers| Kafka {
        brokers,
        settings: BTreeMap::new(),
        replication: None,
    });
    let registry = config::Registry {
        url: dev.registry.clone(),
        user: None,
        password: None,
        listen: None,
    };
    let shared = Arc::new((embedded, kafka, registry));
    Ok(move || {
        let (embedded, kafka, registry) = &*shared;
        let log = match (embedded, kafka) {
            (Some(log), _) => log.clone(),
            (None, Some(kafka)) => backends::kafka_log(kafka)?,
            (None, None) => bail!("neither an embedded log nor a Kafka was chosen"),
        };
        let registry = backends::registry(registry, &log)?;
        Ok(Backends::new(log, registry, clock.clone(), None))
    })
}

/// The token of the backends' listener: made at the first start, kept in the data directory.
fn ingest_token(data: &Path) -> Result<String> {
    let file = data.join(INGEST_TOKEN_FILE);
    if let Ok(token) = std::fs::read_to_string(&file) {
        return Ok(token.trim().to_owned());
    }
    let token = format!("dev-{}", uuid::Uuid::new_v4().simple());
    std::fs::write(&file, &token).with_context(|| format!("write {}", file.display()))?;
    Ok(token)
}

fn say_running(data: &Path, addresses: &Addresses) -> Result<()> {
    let url = |a: Option<SocketAddr>| a.map(|a| format!("http://{a}")).unwrap_or_default();
    let running = backends::Dev {
        admin: url(Some(addresses.admin)),
        edge: url(addresses.edge),
        ingest: url(addresses.ingest),
        pid: std::process::id(),
    };
    let file = backends::running_file(data);
    std::fs::write(&file, serde_json::to_vec_pretty(&running)?).with_context(|| format!("write {}", file.display()))
}

fn start_generator(tasks: &Tasks, ingest: SocketAddr, token: &str, orders_per_s: f64) {
    let (drain, url) = (tasks.drain(), format!("http://{ingest}/v1/ingest/change.shop"));
    let token = token.to_owned();
    tasks.spawn("generator", async move {
        shop::generate(&url, &token, orders_per_s, &drain).await
    });
}

/// The page that ends the start: addresses, a token, and what to type.
fn print_page(addresses: &Addresses, token: &str, ingest_token: &str, sample: bool) {
    let shown = |a: Option<SocketAddr>| a.map_or_else(|| "-".into(), |a| format!("http://{a}"));
    let (edge, ingest) = (shown(addresses.edge), shown(addresses.ingest));
    println!("\nTrunkline runs.\n");
    println!("  devices     {edge}/v1/sync      (API: {edge}/openapi.json)");
    println!("  backends    {ingest}/v1/ingest/{{topic}}");
    println!("  operators   http://{}/readyz, /metrics", addresses.admin);
    println!("  registry    {}", shown(addresses.registry));
    println!(
        "\nA device of customer {}; repeat it and watch the rows change:\n",
        shop::CUSTOMER
    );
    println!("  TOKEN={token}");
    println!("  curl -s {edge}/v1/sync -H \"Authorization: Bearer $TOKEN\" -H 'Trunkline-Device: phone-1'\n");
    if sample {
        println!("A backend's transaction:\n");
        println!("  curl -s {ingest}/v1/ingest/change.shop -H 'Authorization: Bearer {ingest_token}' \\");
        println!(
            "    -d '{{\"changes\":[{{\"table\":\"customers\",\"op\":\"put\",\"row\":{{\"id\":{},\"name\":\"Ada\"}}}}]}}'\n",
            shop::CUSTOMER
        );
    }
    println!("What goes by:  trunkline topics tail view.log --follow       Stop with Ctrl-C.\n");
}
