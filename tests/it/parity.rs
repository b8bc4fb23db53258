//! The product's promise: a behaviour that exists on one surface is the same on all.

use crate::support::{
    KEY, Setup,
    client::{Client, Data, Request},
};
use sluicegate::call::Surface;
use std::time::Duration;

/// Expands one test into four: the same body, on each surface.
macro_rules! every_surface {
    ($(async fn $name:ident($surface:ident) $body:block)*) => {$(
        mod $name {
            use super::*;

            async fn behaviour($surface: Surface) $body

            #[tokio::test]
            async fn rest() {
                behaviour(Surface::Rest).await;
            }
            #[tokio::test]
            async fn grpc() {
                behaviour(Surface::Grpc).await;
            }
            #[tokio::test]
            async fn websocket() {
                behaviour(Surface::WebSocket).await;
            }
            #[tokio::test]
            async fn h2_stream() {
                behaviour(Surface::H2Stream).await;
            }
        }
    )*};
}

fn double() -> Request {
    Request::new("double", &[1, 4], vec![1.0, -2.5, 0.1, 16_777_216.0])
}

every_surface! {
    async fn an_answer_names_its_model_and_echoes_the_id(surface) {
        let running = Setup::new().start().await;
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let answer = client.infer(&double()).await.unwrap();
        assert_eq!((&*answer.model, &*answer.version, &*answer.id), ("double", "1", "t1"));
        assert_eq!(answer.outputs["y"], (vec![1, 4], Data::Floats(vec![2.0, -5.0, 0.2, 33_554_432.0])));
    }

    async fn many_rows_go_in_and_come_out(surface) {
        let running = Setup::new().start().await;
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let values: Vec<f32> = (0..400_u16).map(f32::from).collect();
        let answer = client.infer(&Request::new("double", &[100, 4], values.clone())).await.unwrap();
        let doubled = values.iter().map(|value| value * 2.0).collect();
        assert_eq!(answer.outputs["y"], (vec![100, 4], Data::Floats(doubled)));
    }

    async fn a_tensor_without_elements_is_legal(surface) {
        let running = Setup::new().start().await;
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let answer = client.infer(&Request::new("double", &[0, 4], vec![])).await.unwrap();
        assert_eq!(answer.outputs["y"].0, vec![0, 4]);
    }

    async fn strings_of_any_script_come_back(surface) {
        let running = Setup::new().start().await;
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let strings = vec!["a\u{0}b".to_owned(), String::new(), "𝄞 Füße".to_owned()];
        let request = Request { data: Data::Strings(strings.clone()), ..Request::new("echo", &[3], vec![]) };
        let answer = client.infer(&request).await.unwrap();
        assert_eq!(answer.outputs["y"], (vec![3], Data::Strings(strings)));
    }

    async fn a_key_opens_the_door(surface) {
        let running = Setup::new().with_key().start().await;
        let mut client = Client::connect(surface, &running, Some(KEY)).await.unwrap();
        client.infer(&double()).await.unwrap();
    }

    async fn a_wrong_key_is_unauthenticated(surface) {
        let running = Setup::new().with_key().start().await;
        let wrong = "sg_0000000000000000000000000000000000000000000";
        let failure = match Client::connect(surface, &running, Some(wrong)).await {
            Ok(mut client) => client.infer(&double()).await.unwrap_err(),
            Err(failure) => failure,
        };
        assert_eq!(failure.code, "unauthenticated");
    }

    async fn no_key_is_unauthenticated(surface) {
        let running = Setup::new().with_key().start().await;
        let failure = match Client::connect(surface, &running, None).await {
            Ok(mut client) => client.infer(&double()).await.unwrap_err(),
            Err(failure) => failure,
        };
        assert_eq!(failure.code, "unauthenticated");
    }

    async fn a_key_that_is_revoked_stops_working_on_open_connections(surface) {
        let running = Setup::new().with_key().start().await;
        let mut client = Client::connect(surface, &running, Some(KEY)).await.unwrap();
        client.infer(&double()).await.unwrap();
        running.revoke_keys().await;
        let failure = match client.infer(&double()).await {
            Err(failure) => failure,
            Ok(_) => panic!("a revoked key still works"),
        };
        assert_eq!(failure.code, "unauthenticated");
    }

    async fn the_sixth_call_of_five_is_rate_limited(surface) {
        let running = Setup::new().with_key().with_rate("5/day", 5).start().await;
        let mut client = Client::connect(surface, &running, Some(KEY)).await.unwrap();
        for _ in 0..5 {
            client.infer(&double()).await.unwrap();
        }
        let failure = client.infer(&double()).await.unwrap_err();
        assert_eq!(failure.code, "rate_limited");
        assert!(failure.retry_after.unwrap() >= Duration::from_secs(1), "{failure:?}");
    }

    async fn a_deadline_of_one_millisecond_is_exceeded(surface) {
        let running = Setup::new().start().await;
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let request = Request { timeout: Some(Duration::from_millis(1)), model: "slow".into(), ..double() };
        assert_eq!(client.infer(&request).await.unwrap_err().code, "deadline_exceeded");
    }

    async fn the_default_deadline_holds_where_the_client_names_none(surface) {
        let running = Setup::new().yaml("limits: { deadline: { default: 20ms } }").start().await;
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let failure = client.infer(&Request { model: "slow".into(), ..double() }).await.unwrap_err();
        assert_eq!(failure.code, "deadline_exceeded");
    }

    async fn a_panic_in_the_back_end_is_internal_and_costs_nothing_else(surface) {
        let running = Setup::new().start().await;
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let failure = client.infer(&Request { model: "panic".into(), ..double() }).await.unwrap_err();
        assert_eq!(failure.code, "internal");
        client.infer(&double()).await.unwrap();
    }

    async fn a_failed_run_is_internal_and_says_nothing_of_the_inside(surface) {
        let running = Setup::new().start().await;
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let failure = client.infer(&Request { model: "fail".into(), ..double() }).await.unwrap_err();
        assert_eq!((&*failure.code, &*failure.message), ("internal", "inference failed"));
    }

    async fn an_unknown_model_or_version_is_not_found(surface) {
        let running = Setup::new().start().await;
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let unknown = client.infer(&Request { model: "nobody".into(), ..double() }).await.unwrap_err();
        assert_eq!(unknown.code, "not_found");
        assert!(unknown.message.contains("`nobody`"), "{unknown:?}");
        let version = client.infer(&Request { version: Some("7".into()), ..double() }).await.unwrap_err();
        assert_eq!(version.code, "not_found");
        let named = client.infer(&Request { version: Some("1".into()), ..double() }).await.unwrap();
        assert_eq!(named.version, "1");
    }

    async fn what_is_wrong_with_a_tensor_is_named(surface) {
        let running = Setup::new().start().await;
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let cases = [
            (Request { input: "z".into(), ..double() }, "`z`"),
            (Request { dtype: Some("FP64"), ..double() }, "`x`"),
            (Request { shape: vec![1, 3], data: Data::Floats(vec![1.0; 3]), ..double() }, "[1, 3]"),
            (Request { shape: vec![4], ..double() }, "[4]"),
            (Request { shape: vec![1, 5], ..double() }, "`x`"),
            (Request { shape: vec![usize::MAX / 2, 4], ..double() }, "`x`"),
            (Request { dtype: Some("FLOAT"), ..double() }, "FLOAT"),
            (Request { outputs: vec!["nothing".into()], ..double() }, "`nothing`"),
        ];
        for (request, named) in cases {
            let failure = client.infer(&request).await.unwrap_err();
            assert_eq!(failure.code, "invalid_argument", "{request:?}: {failure:?}");
            assert!(failure.message.contains(named), "{request:?}: {failure:?}");
        }
        client.infer(&double()).await.unwrap();
    }

    async fn a_model_without_any_grant_does_not_exist(surface) {
        let running = Setup::new().with_key().with_grants("[{ to: [\"identity:web\"], intents: [infer], models: [\"d*\"] }]").start().await;
        let mut client = Client::connect(surface, &running, Some(KEY)).await.unwrap();
        client.infer(&double()).await.unwrap();
        let hidden = client.infer(&Request { model: "echo".into(), ..double() }).await.unwrap_err();
        let absent = client.infer(&Request { model: "nobody".into(), ..double() }).await.unwrap_err();
        assert_eq!(hidden.code, "not_found");
        assert_eq!(hidden.message.replace("echo", "nobody"), absent.message);
    }

    async fn a_grant_for_looking_is_none_for_running(surface) {
        let running = Setup::new().with_key().with_grants("[{ to: [\"identity:web\"], intents: [inspect], models: [\"*\"] }]").start().await;
        let mut client = Client::connect(surface, &running, Some(KEY)).await.unwrap();
        let failure = client.infer(&double()).await.unwrap_err();
        assert_eq!(failure.code, "permission_denied");
    }

    async fn a_call_beyond_the_slots_is_overloaded_and_may_come_again(surface) {
        let running = Setup::new().yaml("limits: { concurrency: { calls: 1 } }").start().await;
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let holder = running.hold("slow").await;
        let failure = client.infer(&double()).await.unwrap_err();
        assert_eq!(failure.code, "overloaded");
        assert!(failure.retry_after.is_some());
        holder.release().await;
        client.infer(&double()).await.unwrap();
    }

    async fn who_has_the_higher_priority_goes_first_where_a_model_has_levels(surface) {
        for (levels, order) in [(3, vec![1, 5, 4, 2, 3]), (1, vec![1, 2, 3, 4, 5])] {
            let batching = format!("models: {{ defaults: {{ batching: {{ enabled: false, priorities: {levels} }} }} }}");
            let running = Setup::new().yaml(&batching).start().await;
            let before = running.control("held").batches().len();
            let holder = running.hold("held").await;
            let mut calls = Vec::new();
            // Each is told by its rows. Asking for none, or for a level that there is not, is asking for the lowest.
            for (rows, priority) in [(2, None), (3, Some(9)), (4, Some(2)), (5, Some(1))] {
                let mut client = Client::connect(surface, &running, None).await.unwrap();
                let request = Request { priority, ..Request::new("held", &[rows, 4], vec![0.0; 4 * rows]) };
                calls.push(tokio::spawn(async move { client.infer(&request).await }));
                let waiting = format!("sluicegate_queue_depth{{model=\"held\"}} {}", calls.len());
                running.until("the call waits", |metrics| metrics.contains(&waiting)).await;
            }
            holder.release().await;
            for call in calls {
                call.await.unwrap().unwrap();
            }
            let ran = running.control("held").batches().split_off(before);
            assert_eq!(ran, order, "{levels} levels");
        }
    }

    async fn the_best_classes_of_each_row_come_as_text(surface) {
        let running = Setup::new().start().await;
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        // Doubled by the model; of equal values the lower index is first, and what is no number is last.
        let rows = vec![0.5, -1.0, 1.65, 1.65, 3.0, 2.0, 1.0, 0.0];
        let classified = |classes| Request {
            outputs: vec!["y".into()],
            classes: Some(classes),
            ..Request::new("double", &[2, 4], rows.clone())
        };
        let texts = |texts: &[&str]| Data::Strings(texts.iter().map(|text| (*text).to_owned()).collect());
        let two = client.infer(&classified(2)).await.unwrap();
        assert_eq!(two.outputs["y"], (vec![2, 2], texts(&["3.300000:2", "3.300000:3", "6.000000:0", "4.000000:1"])));
        let all = client.infer(&classified(1000)).await.unwrap();
        assert_eq!(all.outputs["y"].0, vec![2, 4], "no more than there are");
        for wrong in [0, -1] {
            assert_eq!(client.infer(&classified(wrong)).await.unwrap_err().code, "invalid_argument", "{wrong}");
        }
        let strings = Request {
            data: Data::Strings(vec!["a".into()]),
            model: "echo".into(),
            shape: vec![1],
            ..classified(1)
        };
        let failure = client.infer(&strings).await.unwrap_err();
        assert_eq!(failure.code, "invalid_argument");
        assert!(failure.message.contains("BYTES"), "{failure:?}");
    }

    async fn a_model_that_failed_to_load_is_not_ready(surface) {
        let running = Setup::new().start().await;
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let failure = client.infer(&Request { model: "corrupt".into(), ..double() }).await.unwrap_err();
        assert_eq!(failure.code, "not_ready");
        assert!(failure.retry_after.is_some());
    }
}

#[tokio::test]
async fn one_limit_holds_for_all_surfaces_together() {
    let running = Setup::new().with_key().with_rate("5/day", 5).start().await;
    let mut accepted = 0;
    for round in 0..3 {
        for surface in Surface::ALL {
            let mut client = Client::connect(surface, &running, Some(KEY)).await.unwrap();
            match client.infer(&double()).await {
                Ok(_) => accepted += 1,
                Err(failure) => assert_eq!(failure.code, "rate_limited", "round {round}"),
            }
        }
    }
    assert_eq!(accepted, 5);
}

#[tokio::test]
async fn the_same_input_gives_the_same_bits_on_every_surface() {
    let running = Setup::new().start().await;
    let awkward = vec![f32::MIN_POSITIVE, 1.0 / 3.0, -0.0, 1.000_000_1];
    let mut answers = Vec::new();
    for surface in Surface::ALL {
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let answer = client.infer(&Request::new("double", &[1, 4], awkward.clone())).await.unwrap();
        let Data::Floats(values) = &answer.outputs["y"].1 else { panic!("floats") };
        answers.push(values.iter().map(|value| value.to_bits()).collect::<Vec<_>>());
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
}
