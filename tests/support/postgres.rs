//! A dedicated PostgreSQL cluster on loopback with `wal_level=logical`, stopped on drop; psql and pgbench.

use super::{free_port, postgres_bin};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A cluster, running or stopped.
#[derive(Debug)]
pub struct Postgres {
    directory: TempDir,
    port: u16,
    running: bool,
}

impl Postgres {
    /// Creates a cluster and waits until it accepts connections.
    pub fn start() -> Postgres {
        Postgres::with_settings("")
    }

    /// Creates a cluster with further settings.
    pub fn with_settings(further: &str) -> Postgres {
        let directory = tempfile::Builder::new()
            .prefix("trunkline-postgres-")
            .tempdir()
            .expect("make a directory");
        let port = free_port();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).expect("open the directory");
        run(program("initdb")
            .args([
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "--no-sync",
                "-D",
            ])
            .arg(data(&directory)));
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{}'\nwal_level = logical\n\
             max_replication_slots = 20\nmax_wal_senders = 20\n{further}\n",
            directory.path().display()
        );
        let path = data(&directory).join("trunkline.conf");
        // Only the owner can write to the data directory, so the settings are copied from a directory that everyone can
        // read.
        let copy = directory.path().join("trunkline.conf");
        fs::write(&copy, settings).expect("write the settings");
        run(owner("cp").arg(&copy).arg(&path));
        run(owner("sh")
            .args(["-c", "echo \"include 'trunkline.conf'\" >> \"$0/postgresql.conf\""])
            .arg(data(&directory)));
        let mut cluster = Postgres {
            directory,
            port,
            running: false,
        };
        cluster.restart();
        cluster
    }

    /// URL of a superuser, database `postgres`.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Writes a file into the data directory, readable for the server only.
    pub fn write(&self, name: &str, content: &str) {
        let copy = self.directory.path().join(name);
        fs::write(&copy, content).expect("write the file");
        let path = data(&self.directory).join(name);
        run(owner("cp").arg(&copy).arg(&path));
        run(owner("chmod").arg("600").arg(&path));
    }

    /// Creates a running standby of this cluster, which is restarted for that. `further` is added to its settings;
    /// `{primary}` in it stands for the connection string of the primary.
    pub fn standby(&mut self, further: &str) -> Postgres {
        self.stop();
        let directory = tempfile::Builder::new()
            .prefix("trunkline-standby-")
            .tempdir()
            .expect("make a directory");
        fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).expect("open the directory");
        run(owner("cp").arg("-r").arg(data(&self.directory)).arg(data(&directory)));
        self.restart();
        let mut standby = Postgres {
            directory,
            port: free_port(),
            running: false,
        };
        let primary = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port);
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{}'\nwal_level = logical\n\
             max_replication_slots = 20\nmax_wal_senders = 20\nprimary_conninfo = '{primary}'\n{}\n",
            standby.port,
            standby.directory.path().display(),
            further.replace("{primary}", &primary)
        );
        standby.write("trunkline.conf", &settings);
        standby.write("standby.signal", "");
        standby.restart();
        standby
    }

    /// Makes a standby the primary.
    pub fn promote(&self) {
        run(program("pg_ctl")
            .args(["promote", "-w", "-D"])
            .arg(data(&self.directory)));
    }

    /// Stops the cluster with a checkpoint.
    pub fn stop(&mut self) {
        if std::mem::take(&mut self.running) {
            run(program("pg_ctl")
                .args(["stop", "-w", "-m", "fast", "-D"])
                .arg(data(&self.directory)));
        }
    }

    /// Process id of the postmaster.
    pub fn pid(&self) -> u32 {
        let text = owner("cat").arg(data(&self.directory).join("postmaster.pid")).output();
        let text = String::from_utf8(text.expect("read postmaster.pid").stdout).expect("text");
        let first = text.lines().next().expect("the first line of postmaster.pid");
        first.parse().expect("a process id")
    }

    /// Stops the cluster without a checkpoint, like a crash. It keeps its data and port.
    pub fn kill(&mut self) {
        if std::mem::take(&mut self.running) {
            run(program("pg_ctl")
                .args(["stop", "-w", "-m", "immediate", "-D"])
                .arg(data(&self.directory)));
        }
    }

    /// Restarts a killed cluster and waits until it accepts connections.
    pub fn restart(&mut self) {
        assert!(!self.running, "the cluster is running");
        let log = self.directory.path().join("log");
        run(program("pg_ctl")
            .args(["start", "-w", "-t", "30", "-l"])
            .arg(log)
            .arg("-D")
            .arg(data(&self.directory)));
        self.running = true;
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs SQL through psql and returns what it prints, unaligned.
pub fn sql(url: &str, text: &str) -> String {
    let out = Command::new(postgres_bin().join("psql"))
        .args(["-qAt", "-v", "ON_ERROR_STOP=1", url, "-c", text])
        .output()
        .expect("psql runs");
    assert!(out.status.success(), "{text}: {}", String::from_utf8_lossy(&out.stderr));
    let printed = String::from_utf8(out.stdout).expect("text");
    printed.trim().to_owned()
}

/// Creates the tables of pgbench, with a primary key for its history.
pub fn make_bank(url: &str, scale: usize) {
    let made = Command::new(postgres_bin().join("pgbench"))
        .args(["-q", "-i", "-s", &scale.to_string(), url])
        .stderr(Stdio::null())
        .status();
    assert!(made.expect("pgbench runs").success(), "pgbench -i");
    sql(url, "ALTER TABLE pgbench_history ADD COLUMN id bigserial PRIMARY KEY");
}

fn data(directory: &TempDir) -> PathBuf {
    directory.path().join("data")
}

/// Command of a PostgreSQL program, as user postgres if this process runs as root, which PostgreSQL rejects.
fn program(name: &str) -> Command {
    owner(postgres_bin().join(name))
}

fn owner(program: impl AsRef<Path>) -> Command {
    let root = fs::metadata("/proc/self").is_ok_and(|this| this.uid() == 0);
    let program = program.as_ref();
    if !root {
        return Command::new(program);
    }
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(program);
    command
}

fn run(command: &mut Command) {
    // The server inherits the output of pg_ctl, so a pipe would stay open until the server stops.
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .status();
    let status = status.unwrap_or_else(|e| panic!("{command:?} did not run: {e}"));
    assert!(status.success(), "{command:?} failed: {status}");
}
