//! The raw pull protocol against real consumers.

use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use futures::StreamExt as _;
use prewarm::bus::pull::{Answer, Delivery, PullTimes, Pulled, Puller};

use crate::support::nats::{NatsServer, NatsVersion, taken_in};
use crate::support::wait::{eventually, within};

on_every_generation!(
    overlapping_requests_add_up,
    a_quiet_consumer_is_not_a_lost_one,
    a_consumer_that_never_was_is_lost_at_once,
    a_consumer_that_is_deleted_is_lost_at_once,
    a_consumer_that_says_nothing_is_lost,
    an_absurd_request_is_refused_and_not_lost,
    answers_are_understood,
    after_a_reset_nothing_is_delivered,
);

const LIMIT: Duration = Duration::from_secs(60);
const TIMES: PullTimes = PullTimes {
    expires: Duration::from_secs(12),
    idle_heartbeat: Duration::from_secs(4),
};
/// Of a request of which nothing but its end is waited for.
const SHORT: PullTimes = PullTimes {
    expires: Duration::from_secs(4),
    idle_heartbeat: Duration::from_secs(2),
};

struct Stream {
    _server: NatsServer,
    client: async_nats::Client,
    context: jetstream::Context,
    puller: Puller,
}

impl Stream {
    async fn new(version: NatsVersion) -> Self {
        let server = NatsServer::start(version).await;
        let client = server.client().await;
        let context = jetstream::new(client.clone());
        let config = jetstream::stream::Config {
            name: "S".to_owned(),
            subjects: vec!["s.>".to_owned()],
            ..Default::default()
        };
        let stream = context.create_stream(config).await.unwrap();
        let config = pull::Config {
            durable_name: Some("C".to_owned()),
            ack_policy: AckPolicy::Explicit,
            memory_storage: true,
            ..Default::default()
        };
        stream.create_consumer(config).await.unwrap();
        let puller = Puller::new(client.clone(), Some(TIMES));
        Self {
            _server: server,
            client,
            context,
            puller,
        }
    }

    async fn publish(&self, subject: &'static str) {
        self.context
            .publish(subject, "body".into())
            .await
            .unwrap()
            .await
            .unwrap();
    }

    async fn request(&mut self, batch: u32) {
        self.puller.request("S", "C", batch).await.unwrap();
    }

    /// Waits until the consumer knows of the request.
    async fn waiting(&self) {
        let stream = self.context.get_stream("S").await.unwrap();
        let mut consumer: PullConsumer = stream.get_consumer("C").await.unwrap();
        eventually("a request to wait at the consumer", LIMIT, async || {
            consumer
                .info()
                .await
                .is_ok_and(|info| info.num_waiting == 1)
        })
        .await;
    }

    async fn next(&mut self) -> Pulled {
        within(
            LIMIT,
            "something to come by a pull request",
            self.puller.next(),
        )
        .await
    }

    async fn delivery(&mut self) -> Delivery {
        match self.next().await {
            Pulled::Delivery(delivery) => delivery,
            other => panic!("{other:?}"),
        }
    }

    async fn answer(&self, delivery: Delivery, answer: Answer) {
        self.client
            .publish(delivery.reply, answer.body())
            .await
            .unwrap();
    }
}

async fn overlapping_requests_add_up(version: NatsVersion) {
    let mut stream = Stream::new(version).await;
    stream.request(2).await;
    stream.request(3).await;
    for subject in ["s.1", "s.2", "s.3", "s.4"] {
        stream.publish(subject).await;
    }
    for subject in ["s.1", "s.2", "s.3", "s.4"] {
        let delivery = stream.delivery().await;
        assert_eq!(
            (delivery.subject.as_str(), delivery.deliveries),
            (subject, 1)
        );
        assert_eq!(delivery.payload, "body");
    }
    // The fifth will not come, and that is said once or in parts.
    match stream.next().await {
        Pulled::Expired { undelivered } => assert_eq!(undelivered, 1),
        other => panic!("{other:?}"),
    }
}

async fn a_quiet_consumer_is_not_a_lost_one(version: NatsVersion) {
    let mut stream = Stream::new(version).await;
    let began = Instant::now();
    stream.request(2).await;
    stream.request(1).await;
    let mut undelivered = 0;
    while undelivered < 3 {
        match stream.next().await {
            Pulled::Expired { undelivered: more } => undelivered += more,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(undelivered, 3);
    // Longer than the silence that counts as a loss: idle heartbeats were heard.
    assert!(began.elapsed() > TIMES.idle_heartbeat * 5 / 2);
}

async fn lost(mut stream: Stream) -> String {
    match within(LIMIT, "the consumer to count as lost", stream.puller.next()).await {
        Pulled::Lost { reason } => reason,
        other => panic!("{other:?}"),
    }
}

async fn a_consumer_that_never_was_is_lost_at_once(version: NatsVersion) {
    let mut stream = Stream::new(version).await;
    stream.puller.request("S", "other", 1).await.unwrap();
    let reason = lost(stream).await;
    assert!(reason.contains("503"), "{reason}");
}

async fn a_consumer_that_is_deleted_is_lost_at_once(version: NatsVersion) {
    let mut stream = Stream::new(version).await;
    stream.request(1).await;
    stream.waiting().await;
    stream
        .context
        .delete_consumer_from_stream("C", "S")
        .await
        .unwrap();
    let reason = lost(stream).await;
    assert!(reason.contains("409"), "{reason}");
}

async fn a_consumer_that_says_nothing_is_lost(version: NatsVersion) {
    let mut stream = Stream::new(version).await;
    // Somebody listens, so nobody says that nobody does.
    let subject = "$JS.API.CONSUMER.MSG.NEXT.S.mute";
    let mut mute = stream.client.subscribe(subject).await.unwrap();
    stream.puller.request("S", "mute", 1).await.unwrap();
    within(LIMIT, "the request", mute.next()).await.unwrap();
    let reason = lost(stream).await;
    assert!(reason.contains("nothing"), "{reason}");
}

async fn an_absurd_request_is_refused_and_not_lost(version: NatsVersion) {
    let mut stream = Stream::new(version).await;
    stream.puller = Puller::new(
        stream.client.clone(),
        Some(PullTimes {
            expires: Duration::from_secs(1),
            idle_heartbeat: Duration::from_secs(10),
        }),
    );
    stream.request(7).await;
    match stream.next().await {
        Pulled::Refused {
            undelivered,
            reason,
        } => {
            assert_eq!(undelivered, 7);
            assert!(reason.contains("400"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

async fn answers_are_understood(version: NatsVersion) {
    let mut stream = Stream::new(version).await;
    stream.publish("s.1").await;
    stream.request(1).await;
    let first = stream.delivery().await;
    stream.answer(first, Answer::Nak(None)).await;
    stream.request(1).await;
    let again = stream.delivery().await;
    assert_eq!(again.deliveries, 2);
    let began = Instant::now();
    stream
        .answer(again, Answer::Nak(Some(Duration::from_millis(700))))
        .await;
    stream.request(1).await;
    let later = stream.delivery().await;
    assert_eq!(later.deliveries, 3);
    assert!(
        began.elapsed() >= Duration::from_millis(600),
        "{:?}",
        began.elapsed()
    );
    stream.answer(later.clone(), Answer::InProgress).await;
    stream.answer(later, Answer::Ack).await;
    stream.puller = Puller::new(stream.client.clone(), Some(SHORT));
    stream.request(1).await;
    assert!(matches!(
        stream.next().await,
        Pulled::Expired { undelivered: 1 }
    ));
}

async fn after_a_reset_nothing_is_delivered(version: NatsVersion) {
    let mut stream = Stream::new(version).await;
    stream.request(1).await;
    stream.waiting().await;
    stream.puller.reset();
    taken_in(&stream.client).await;
    stream.publish("s.1").await;
    stream.request(1).await;
    let delivery = stream.delivery().await;
    assert_eq!(
        delivery.deliveries, 1,
        "it was not delivered to the dropped request"
    );
}
