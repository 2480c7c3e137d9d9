//! Makes Jobs at the times of a schedule.
//!
//! [`plan`] decides; this file observes and acts. A Job's name says for which minute it was made,
//! so none is made twice.

mod plan;

use std::sync::Arc;

use insula_client::{
    Change, Client, DeleteOptions, Error, EventRecorder, EventType, ObjectKey, Propagation,
    Tenanted, chain,
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job},
        core::v1::ObjectReference,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use self::plan::{Observed, Plan, Start, job_name, plan, reference};
use crate::{
    controller::{Controller, Next, ReconcileError},
    informers::Informers,
    objects::{controller_of, controller_reference, controller_uid, to_time},
    queue::Queue,
    status::write_status_at,
};

/// The time for which a Job was made, in the schedule's zone.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// Keeps CronJobs.
#[derive(Debug)]
pub(crate) struct CronJobs {
    client: Client,
    informers: Informers,
    events: EventRecorder,
}

impl CronJobs {
    pub(crate) fn new(client: Client, informers: Informers, events: &EventRecorder) -> Self {
        Self { client, informers, events: events.named("cronjob-controller") }
    }

    fn job_changed(change: &Change<'_, Job>, queue: &Queue<ObjectKey>) {
        for job in [change.old, change.new].into_iter().flatten() {
            if let Some(owner) = controller_of(&job.object).filter(|it| it.kind == "CronJob") {
                queue.add(ObjectKey::new(&job.tenant, job.namespace(), &owner.name));
            }
        }
    }

    async fn delete(&self, cron: &Tenanted<CronJob>, job: &Tenanted<Job>) -> Result<(), Error> {
        let api = self.client.tenant(&cron.tenant).namespaced::<Job>(cron.namespace());
        let options =
            DeleteOptions::default().only_uid(job.uid()).propagation(Propagation::Background);
        match api.delete(job.name(), &options).await {
            Ok(_) => {
                let message = format!("Deleted job {}", job.name());
                self.events.record(cron, EventType::Normal, "SuccessfulDelete", message);
                Ok(())
            }
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => {
                let message = format!("Deleted job: {}", chain(&error));
                self.events.record(cron, EventType::Warning, "FailedDelete", message);
                Err(error)
            }
        }
    }

    /// Makes the Job of a moment. `None` where somebody else has its name.
    async fn create(
        &self,
        cron: &Tenanted<CronJob>,
        spec: &CronJobSpec,
        start: &Start,
    ) -> Result<Option<ObjectReference>, Error> {
        let api = self.client.tenant(&cron.tenant).namespaced::<Job>(cron.namespace());
        let job = job_of(cron, spec, start);
        let name = job.metadata.name.clone().unwrap_or_default();
        let made = match api.create(&job).await {
            Ok(made) => {
                let message = format!("Created job {name}");
                self.events.record(cron, EventType::Normal, "SuccessfulCreate", message);
                made
            }
            Err(error) if error.is_already_exists() => {
                // Made by an earlier pass that did not come to write it down.
                match api.get_opt(&name).await? {
                    Some(it) if controller_uid(&it.object) == Some(cron.uid()) => it,
                    _ => return Ok(None),
                }
            }
            Err(error) if error.is_namespace_terminating() => return Ok(None),
            Err(error) => {
                let message = format!("Error creating job: {}", chain(&error));
                self.events.record(cron, EventType::Warning, "FailedCreate", message);
                return Err(error);
            }
        };
        Ok(Some(reference(&made)))
    }

    async fn act(
        &self,
        cron: &Tenanted<CronJob>,
        spec: &CronJobSpec,
        plan: &Plan,
        status: &mut CronJobStatus,
    ) -> Result<(), Error> {
        for job in &plan.delete {
            self.delete(cron, job).await?;
        }
        let Some(start) = &plan.start else { return Ok(()) };
        for job in &start.replaced {
            self.delete(cron, job).await?;
            status.active.iter_mut().for_each(|active| {
                active.retain(|it| it.uid.as_deref() != Some(job.uid()));
            });
        }
        if let Some(made) = self.create(cron, spec, start).await? {
            status.active.get_or_insert_default().push(made);
        }
        status.last_schedule_time = Some(to_time(start.at));
        Ok(())
    }
}

/// The Job of a moment.
fn job_of(cron: &Tenanted<CronJob>, spec: &CronJobSpec, start: &Start) -> Job {
    let template = &spec.job_template;
    let meta = template.metadata.clone().unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    let shown = start.at.to_zoned(start.zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
    annotations.insert(SCHEDULED.to_owned(), shown.replace("+00:00", "Z"));
    Job {
        metadata: ObjectMeta {
            name: Some(job_name(cron.name(), start.at)),
            namespace: Some(cron.namespace().to_owned()),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(cron)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

impl Controller for CronJobs {
    const NAME: &'static str = "cronjob-controller";
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.informers.cron_jobs.on_change(move |change| keys.add(change.key.clone()));
        let keys = queue.clone();
        self.informers.jobs.informer.on_change(move |change| Self::job_changed(change, &keys));
    }

    async fn synced(&self) -> bool {
        self.informers.cron_jobs.synced().await && self.informers.jobs.informer.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let Some(cron) = self.informers.cron_jobs.get(key) else {
            return Ok(Next::WhenChanged);
        };
        let spec = &cron.spec;
        let jobs = self.informers.jobs.managed_by(&cron);
        let now = Timestamp::now();
        let plan = plan(&Observed { cron: &cron, spec, jobs, now });
        let mut status = plan.status.clone();
        let acted = self.act(&cron, spec, &plan, &mut status).await;
        let api = self.client.tenant(&cron.tenant).namespaced::<CronJob>(cron.namespace());
        write_status_at(&api, &cron, cron.status.as_ref(), &status).await?;
        // What a newer copy may see otherwise is not told.
        for (is_good, reason, message) in &plan.news {
            let how = if *is_good { EventType::Normal } else { EventType::Warning };
            self.events.record(&cron, how, reason, message.clone());
        }
        acted?;
        Ok(plan.next.map_or(Next::WhenChanged, Next::After))
    }
}
