//! News from the runtime.

use futures::{FutureExt, Stream, StreamExt, stream::BoxStream};
use tonic::{Code, Status};

use super::{
    client::RuntimeClient,
    containerd::{SubscribeRequest, events_client::EventsClient},
    error::RuntimeError,
    v1,
};

/// A stream whose items say that something changed in the runtime, not what.
pub(super) type RuntimeEvents = BoxStream<'static, Result<(), RuntimeError>>;

impl RuntimeClient {
    /// A stream that has an item whenever something changed: the interface's own events where the
    /// runtime has them, else containerd's. Ends with an error, at once if it has neither.
    ///
    /// Lazy, because a server of these streams sends nothing at all before the first event.
    pub(crate) fn events(&self) -> RuntimeEvents {
        let client = self.clone();
        let own = async move {
            match client.runtime().get_container_events(v1::GetEventsRequest {}).await {
                Ok(response) => client.hints("GetContainerEvents", response.into_inner()),
                Err(status) if status.code() == Code::Unimplemented => client.containerd_events(),
                Err(status) => failed(client.error("GetContainerEvents", status)),
            }
        };
        own.flatten_stream().boxed()
    }

    fn containerd_events(&self) -> RuntimeEvents {
        let client = self.clone();
        let subscription = async move {
            let filters = vec![r#"namespace=="k8s.io",topic~="^/tasks/""#.to_owned()];
            let mut events = EventsClient::new(client.channel.clone());
            match events.subscribe(SubscribeRequest { filters }).await {
                Ok(response) => client.hints("Subscribe", response.into_inner()),
                Err(status) => failed(client.error("Subscribe", status)),
            }
        };
        subscription.flatten_stream().boxed()
    }

    fn hints<T>(
        &self,
        call: &'static str,
        events: impl Stream<Item = Result<T, Status>> + Send + 'static,
    ) -> RuntimeEvents {
        let client = self.clone();
        events
            .map(move |event| event.map(drop).map_err(|status| client.error(call, status)))
            .boxed()
    }
}

fn failed(error: RuntimeError) -> RuntimeEvents {
    futures::stream::once(async { Err(error) }).boxed()
}
