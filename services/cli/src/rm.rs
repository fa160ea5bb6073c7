//! `holdfast rm`: deletes images that clients pushed or that were imported, by the registry's own
//! API. Copies of upstreams belong to the controller. What pods and templates name stays.

mod plan;
mod registry;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use holdfast_cli_kit::cluster::{self, ClusterArgs, Listed, Release, SECRETS};
use holdfast_cli_kit::confirm::ConfirmArgs;
use holdfast_cli_kit::exit_status::{Answer, Usage};
use holdfast_cli_kit::output::{Document, OutputArgs};
use holdfast_cli_kit::terminal;
use holdfast_core::credentials::{PullSecret, candidates};
use holdfast_core::digest::Digest;
use holdfast_core::meaning::{self, Meaning};
use holdfast_core::reference::{Reference, RepositoryName};
use holdfast_core::rewrite;
use holdfast_core::workload::{self, KINDS, controller_of, pod_template, text};
use k8s_openapi::ByteString;
use kube::Client;
use serde::Serialize;
use serde_json::Value;

use crate::export::PROBE;
use plan::{Decision, Repository, Target, Use};
use registry::Registry;

/// Pods and owners that are named for one image.
const NAMED_USERS: usize = 3;
/// Characters of a digest in a table.
const SHOWN_DIGEST: usize = 19;

/// Arguments of `rm`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  holdfast rm team/app:1
  holdfast rm --unused --dry-run
  holdfast rm --unused --yes --username ci --password-stdin < password.txt

IMAGE is a pushed or imported image: team/app:1, team/app@DIGEST, with or without the registry's \
address. Copies of upstreams' images are refused, because the controller keeps them.

NAME:TAG deletes the tag. If no other tag of the repository needs its manifest, the manifest and \
the manifests that it alone lists go, too. NAME@DIGEST deletes a manifest with all its tags. The \
bytes stay on the volume.

An image that a pod or the template of an owner names, in any namespace, is refused. Templates of \
custom kinds are not seen.

It connects to the registry's address, which nodes and pods reach. The user needs the actions pull \
and delete (registry.access.rules). Without --username, the login of docker is used.

Exit status: 0 everything was deleted (or would be, with --dry-run), 1 something was not, 2 it \
could not run.")]
pub struct Args {
    /// The images
    #[arg(value_name = "IMAGE", required_unless_present = "unused")]
    images: Vec<String>,
    /// Every pushed or imported tag that no pod and no template names
    #[arg(long, conflicts_with = "images")]
    unused: bool,
    /// Only prints what it would do
    #[arg(long)]
    dry_run: bool,
    /// The registry [default: the address that nodes use]
    #[arg(long, value_name = "URL")]
    registry: Option<String>,
    /// The CA bundle that signs the registry's certificate (PEM) [default: that of the release]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The user at the registry
    #[arg(long, value_name = "NAME", requires = "password_stdin")]
    username: Option<String>,
    /// Reads the password of the user from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
    #[command(flatten)]
    confirm: ConfirmArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// An image that was asked for.
struct Wanted {
    image: String,
    repository: RepositoryName,
    target: Target,
}

/// What happens to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Action {
    /// The manifest goes.
    Delete,
    /// Only the tag goes.
    DeleteTag,
    /// It stays.
    Refuse,
    /// There is no such image.
    Absent,
    /// It could not be deleted.
    Fail,
}

/// One line of the result.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
    action: Action,
    message: String,
    /// What names the image.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    used_by: Vec<String>,
    /// What the registry is asked to delete.
    #[serde(skip)]
    requests: Vec<(RepositoryName, String)>,
}

/// Deletes, and prints what was deleted.
pub(crate) async fn run(args: Args) -> ExitCode {
    args.output.apply();
    let result = remove(&args).await;
    args.output.finish(result)
}

async fn remove(args: &Args) -> anyhow::Result<Document> {
    let client = args.cluster.client().await?;
    let release = args.cluster.release(&client).await?;
    let state = release.state(&client).await?;
    let addresses = cluster::addresses(state.as_ref());
    let address = addresses
        .first()
        .context("the controller has not published the registry's address yet")?;
    let wanted = args
        .images
        .iter()
        .map(|image| wanted(image, &addresses))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let registry = connect(args, &client, &release, address).await?;
    let uses = uses(&client, &addresses).await?;
    let mut rows = if args.unused {
        unused(&registry, &uses).await?
    } else {
        asked_for(&registry, &wanted, &uses).await?
    };
    if !args.dry_run {
        delete(args, &registry, &mut rows).await?;
    }
    document(args, &rows)
}

/// Reads an image as it is written, with or without one of the registry's addresses.
fn wanted(image: &str, addresses: &[String]) -> anyhow::Result<Wanted> {
    let wrong = |why: &str| Usage(format!("{image}: {why}"));
    let path = addresses
        .iter()
        .find_map(|address| image.strip_prefix(address.as_str())?.strip_prefix('/'))
        .unwrap_or(image);
    let name = path.rsplit('/').next().unwrap_or(path);
    if !name.contains([':', '@']) {
        return Err(wrong("name a tag or a digest").into());
    }
    let address = addresses.first().map_or("registry", String::as_str);
    let reference = Reference::parse(&format!("{address}/{path}"))
        .map_err(|error| wrong(&format!("this is no image: {error}")))?;
    let target = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => Target::Digest(digest.clone()),
        (None, Some(tag)) => Target::Tag(tag.clone()),
        (None, None) => return Err(wrong("name a tag or a digest").into()),
    };
    Ok(Wanted {
        image: path.to_owned(),
        repository: reference.repository().clone(),
        target,
    })
}

async fn connect(
    args: &Args,
    client: &Client,
    release: &Release,
    address: &str,
) -> anyhow::Result<Registry> {
    let url = args
        .registry
        .clone()
        .unwrap_or_else(|| format!("https://{address}"));
    let ca = match &args.ca {
        Some(path) => {
            Some(std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?)
        }
        None if url.starts_with("http://") => None,
        None => Some(release_ca(client, release).await?),
    };
    let login = match &args.username {
        Some(username) => {
            let mut password = String::new();
            std::io::stdin()
                .read_to_string(&mut password)
                .context("cannot read standard input")?;
            let password = password.trim_end_matches(['\r', '\n']).to_owned();
            Some((username.clone(), password))
        }
        None => docker_login(address),
    };
    Registry::new(&url, ca.as_deref(), login)
}

/// The CA of the registry's certificate, from the release's Secret.
async fn release_ca(client: &Client, release: &Release) -> anyhow::Result<Vec<u8>> {
    let names = &release.names;
    let secret = names.registry_tls();
    let path = format!("{}/{secret}", SECRETS.path(Some(&names.namespace)));
    let found = cluster::get(client, &path)
        .await
        .map_err(|error| anyhow::anyhow!(cluster::error_message(&error)))
        .with_context(|| format!("Secret {secret} has the CA; --ca names a file instead"))?;
    let ca = found
        .as_ref()
        .and_then(|secret| secret.pointer("/data/ca.crt"))
        .and_then(|ca| serde_json::from_value::<ByteString>(ca.clone()).ok());
    let ca = ca.with_context(|| format!("Secret {secret} has no ca.crt; --ca names a file"))?;
    Ok(ca.0)
}

/// The user and password that `docker login` stored for the registry. Credential helpers are not
/// asked.
fn docker_login(address: &str) -> Option<(String, String)> {
    let folder = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let folder = folder.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".docker")))?;
    let config = std::fs::read(folder.join("config.json")).ok()?;
    let secret = PullSecret::from_dockerconfigjson(&config).ok()?;
    let reference = Reference::parse(&format!("{address}/any")).ok()?;
    let credential = candidates([secret], &reference).into_iter().next()?;
    (!credential.username.is_empty()).then_some((credential.username, credential.password))
}

/// The images of the registry that pods and templates name, in all namespaces. What may not be read
/// ends the command: an image could be in use.
async fn uses(client: &Client, addresses: &[String]) -> anyhow::Result<Vec<Use>> {
    let (mut owners, mut owned) = (Vec::new(), Vec::new());
    for kind in KINDS {
        let items = match cluster::list(client, kind.into(), None).await? {
            Listed::Items(items) => items,
            Listed::Forbidden | Listed::Unknown => bail!(
                "{} may not be listed in all namespaces, so the images in use are not all known; \
                 nothing was deleted",
                kind.plural
            ),
        };
        for object in &items {
            let found = uses_of(kind.kind, object, addresses);
            let list = match controller_of(object) {
                None => &mut owners,
                Some(_) => &mut owned,
            };
            list.extend(found);
        }
    }
    // The topmost owners are named first.
    owners.extend(owned);
    Ok(owners)
}

fn uses_of(kind: &str, object: &Value, addresses: &[String]) -> Vec<Use> {
    if !workload::may_start(kind, object) {
        return Vec::new();
    }
    let by = format!(
        "{kind} {}/{}",
        text(object, "/metadata/namespace"),
        text(object, "/metadata/name")
    );
    let templates = pod_template(kind, object).into_iter();
    let images = templates.flat_map(|template| meaning::of_pod(template, addresses));
    images
        .filter(|found| matches!(found.meaning, Meaning::Own { .. }))
        .filter_map(|found| Reference::parse(&found.image.image).ok())
        .map(|reference| Use {
            by: by.clone(),
            repository: reference.repository().clone(),
            tag: reference.tag().cloned(),
            digest: reference.digest().cloned(),
        })
        .collect()
}

async fn asked_for(
    registry: &Registry,
    wanted: &[Wanted],
    uses: &[Use],
) -> anyhow::Result<Vec<Row>> {
    let mut repositories: BTreeMap<&RepositoryName, Repository> = BTreeMap::new();
    let mut rows = Vec::new();
    for Wanted {
        image,
        repository: name,
        target,
    } in wanted
    {
        if let Some(why) = not_pushed(name) {
            rows.push(Row::refused(image, why.to_owned(), Vec::new()));
            continue;
        }
        if !repositories.contains_key(name) {
            repositories.insert(name, registry.repository(name).await?);
        }
        let Some(repository) = repositories.get_mut(name) else {
            continue;
        };
        if let Target::Digest(digest) = target
            && let Some(stored) = registry.manifest(name, digest.as_str()).await?
        {
            repository.by_digest.insert(digest.clone(), stored);
        }
        rows.push(row(image, repository, target, uses));
    }
    Ok(rows)
}

/// Every pushed tag that nothing names.
async fn unused(registry: &Registry, uses: &[Use]) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut in_use = 0;
    let line = terminal::spinner();
    for name in registry.repositories().await? {
        if not_pushed(&name).is_some() {
            continue;
        }
        line.set_message(name.to_string());
        line.tick();
        let mut repository = registry.repository(&name).await?;
        let tags: Vec<_> = repository.tags.keys().cloned().collect();
        for tag in tags {
            let image = format!("{name}:{tag}");
            let row = row(&image, &mut repository, &Target::Tag(tag), uses);
            if row.action == Action::Refuse {
                in_use += 1;
            } else {
                rows.push(row);
            }
        }
    }
    line.finish_and_clear();
    if in_use > 0 {
        terminal::note(&format!(
            "{} in use",
            terminal::count(in_use, "image is", "images are")
        ));
    }
    Ok(rows)
}

/// Why an image of this repository was not pushed by a client.
fn not_pushed(repository: &RepositoryName) -> Option<&'static str> {
    if repository.as_str() == PROBE {
        Some("it belongs to the registry")
    } else if rewrite::is_upstream_namespace(repository) {
        Some("it is a copy of an upstream's image, which the controller keeps")
    } else {
        None
    }
}

fn row(image: &str, repository: &mut Repository, target: &Target, uses: &[Use]) -> Row {
    let digest = match target {
        Target::Tag(tag) => repository.tags.get(tag).map(|stored| stored.digest.clone()),
        Target::Digest(digest) => Some(digest.clone()),
    };
    let name = repository.name.clone();
    let mut row = match plan::decide(repository, target, uses) {
        Decision::DeleteTag { others, .. } => {
            let others: Vec<String> = others.iter().map(ToString::to_string).collect();
            Row {
                action: Action::DeleteTag,
                message: format!("the tag only: {} needs the manifest", others.join(", ")),
                requests: vec![(name, target.name())],
                ..Row::new(image)
            }
        }
        Decision::DeleteManifests(digests) => Row {
            action: Action::Delete,
            requests: digests
                .iter()
                .map(|digest| (name.clone(), digest.to_string()))
                .collect(),
            ..Row::new(image)
        },
        Decision::InUse(by) => {
            let mut named: BTreeSet<&str> = BTreeSet::new();
            let mut users: Vec<String> = Vec::new();
            for user in &by {
                if named.insert(user) {
                    users.push(user.clone());
                }
            }
            let mut text = users.iter().take(NAMED_USERS).cloned().collect::<Vec<_>>();
            if users.len() > NAMED_USERS {
                text.push(format!("{} more", users.len() - NAMED_USERS));
            }
            Row::refused(image, format!("named by {}", text.join(", ")), users)
        }
        Decision::PartOf(tag) => {
            let why = format!("the index {}:{tag} lists it", repository.name);
            Row::refused(image, why, Vec::new())
        }
        Decision::Absent => Row {
            action: Action::Absent,
            message: "the registry does not have it".to_owned(),
            ..Row::new(image)
        },
    };
    row.digest = digest;
    row
}

impl Row {
    fn new(image: &str) -> Self {
        Self {
            image: image.to_owned(),
            digest: None,
            action: Action::Delete,
            message: String::new(),
            used_by: Vec::new(),
            requests: Vec::new(),
        }
    }

    fn refused(image: &str, message: String, used_by: Vec<String>) -> Self {
        Self {
            action: Action::Refuse,
            message,
            used_by,
            ..Self::new(image)
        }
    }

    fn goes(&self) -> bool {
        matches!(self.action, Action::Delete | Action::DeleteTag)
    }
}

/// Asks, then deletes. A failure does not end the others.
async fn delete(args: &Args, registry: &Registry, rows: &mut [Row]) -> anyhow::Result<()> {
    let count = rows.iter().filter(|row| row.goes()).count() as u64;
    if count == 0 {
        return Ok(());
    }
    let images = terminal::count(count, "image", "images");
    args.confirm
        .ask(&format!("this deletes {images} from the registry"))?;
    for row in rows.iter_mut().filter(|row| row.goes()) {
        for (repository, target) in std::mem::take(&mut row.requests) {
            if let Err(error) = registry.delete(&repository, &target).await {
                row.action = Action::Fail;
                row.message = format!("{error:#}");
                break;
            }
        }
    }
    Ok(())
}

fn document(args: &Args, rows: &[Row]) -> anyhow::Result<Document> {
    let lines: Vec<_> = rows
        .iter()
        .map(|row| {
            let digest = row.digest.as_ref().map_or("", Digest::as_str);
            let result = match (row.action, args.dry_run) {
                (Action::Delete, true) => "would be deleted",
                (Action::Delete, false) => "deleted",
                (Action::DeleteTag, true) => "tag would be deleted",
                (Action::DeleteTag, false) => "tag deleted",
                (Action::Refuse, _) => "refused",
                (Action::Absent, _) => "absent",
                (Action::Fail, _) => "failed",
            };
            [
                row.image.clone(),
                digest.chars().take(SHOWN_DIGEST).collect(),
                result.to_owned(),
                row.message.clone(),
            ]
        })
        .collect();
    let mut table = terminal::table(["IMAGE", "DIGEST", "RESULT", "WHY"], &lines);
    if args.dry_run {
        table.push_str("nothing was changed\n");
    }
    let answer = Answer::from(rows.iter().all(Row::goes));
    let names = rows.iter().filter(|row| row.goes());
    let names = names.map(|row| row.image.clone());
    Ok(Document::new("Deletion", answer, &rows, table)?.with_names(names))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn addresses() -> Vec<String> {
        vec!["10.96.0.50".to_owned(), "[fd00::5]:5000".to_owned()]
    }

    #[test]
    fn an_image_is_named_with_or_without_the_address() {
        for (text, expect) in [
            ("team/app:1", "team/app :1"),
            ("app:1", "app :1"),
            ("10.96.0.50/team/app:1", "team/app :1"),
            ("[fd00::5]:5000/team/app:1", "team/app :1"),
            ("docker.io/library/nginx:1", "docker.io/library/nginx :1"),
        ] {
            let found = wanted(text, &addresses()).unwrap();
            assert_eq!(format!("{} {}", found.repository, found.target), expect);
        }
        let digest = format!("sha256:{}", "a".repeat(64));
        let found = wanted(&format!("team/app:1@{digest}"), &addresses()).unwrap();
        assert_eq!(
            found.target,
            Target::Digest(Digest::parse(&digest).unwrap())
        );
        for wrong in ["team/app", "", "Team/App:1", "team/app:", "team/app@1"] {
            let error = wanted(wrong, &addresses()).err();
            assert!(error.unwrap().is::<Usage>(), "{wrong}");
        }
    }

    #[test]
    fn copies_of_upstreams_and_the_probe_are_not_deleted() {
        let check = |name: &str| not_pushed(&RepositoryName::parse(name).unwrap()).is_some();
        assert!(check("docker.io/library/nginx"));
        assert!(check("registry.example_5000/app"));
        assert!(check("holdfast/probe"));
        assert!(!check("team/app"));
        assert!(!check("holdfast/other"));
    }

    #[test]
    fn pods_and_templates_that_may_start_use_images_of_the_registry() {
        let containers = json!({"containers": [
            {"image": "10.96.0.50/team/app:1"},
            {"image": "docker.io/team/app:1"},
            {"image": "10.96.0.50/team/tool"},
        ]});
        let web = json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"replicas": 0, "template": {"spec": containers}},
        });
        let found = uses_of("Deployment", &web, &addresses());
        let names: Vec<_> = found
            .iter()
            .map(|it| format!("{} {}:{}", it.by, it.repository, it.tag.as_ref().unwrap()))
            .collect();
        assert_eq!(
            names,
            [
                "Deployment shop/web team/app:1",
                "Deployment shop/web team/tool:latest",
            ]
        );
        let ended = json!({
            "metadata": {"name": "p", "namespace": "shop"},
            "spec": containers, "status": {"phase": "Succeeded"},
        });
        assert!(uses_of("Pod", &ended, &addresses()).is_empty());
    }
}
