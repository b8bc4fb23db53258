//! Trace settings, the log and shared memory over real sockets (contract 02 sections 11 and 12).

use crate::support::{KEY, Setup, client::status_failure, scripts::World};
use serde_json::{Value, json};
use sluicegate::wire::proto::inference::{
    self as pb, log_settings_request, log_settings_response, trace_setting_request,
};

const FILES: [(&str, &str); 2] = [("a/1/model.onnx", "double"), ("b/1/model.onnx", "double")];

async fn get(world: &World, path: &str) -> Value {
    let (status, body) = world.rest("GET", path, "").await;
    assert_eq!(status, 200, "{body}");
    body
}

async fn post(world: &World, path: &str, body: &Value) -> (u16, Value) {
    world.rest("POST", path, body.to_string()).await
}

#[tokio::test]
async fn trace_settings_are_the_servers_or_a_models_own() {
    let world = World::explicit("all", &FILES).await;
    let first = json!({ "trace_level": ["OFF"], "trace_rate": "1000", "trace_count": "-1", "log_frequency": "0",
        "trace_file": "" });
    assert_eq!(get(&world, "/v2/trace/setting").await, first);
    assert_eq!(get(&world, "/v2/models/a/trace/setting").await, first);
    let own = "/v2/models/a/trace/setting";
    let (status, changed) =
        post(&world, own, &json!({ "trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": "7" })).await;
    assert_eq!((status, &changed["trace_rate"]), (200, &json!("7")));
    assert_eq!(changed["trace_level"], json!(["TIMESTAMPS", "TENSORS"]), "the answer is all of them");
    assert_eq!(changed["log_frequency"], "0");
    assert_eq!(get(&world, "/v2/trace/setting").await, first, "the server's stay");
    assert_eq!(get(&world, "/v2/models/b/trace/setting").await, first);
    assert_eq!(post(&world, "/v2/trace/setting", &json!({ "trace_rate": "5" })).await.0, 200);
    assert_eq!(post(&world, own, &json!({ "trace_rate": null })).await.1["trace_rate"], "5", "the server's again");

    let mut client = world.grpc().await;
    let ask = |model: &str, settings| pb::TraceSettingRequest { settings, model_name: model.into() };
    let read = client.trace_setting(ask("a", Default::default())).await.unwrap().into_inner().settings;
    assert_eq!(
        (&read["trace_level"].value[..], &read["trace_rate"].value[..]),
        (&["TIMESTAMPS".to_owned(), "TENSORS".to_owned()][..], &["5".to_owned()][..])
    );
    let off = trace_setting_request::SettingValue { value: vec!["OFF".into()] };
    let changed = client.trace_setting(ask("a", [("trace_level".into(), off)].into())).await.unwrap().into_inner();
    assert_eq!(changed.settings["trace_level"].value, ["OFF"]);
    assert_eq!(get(&world, own).await["trace_level"], json!(["OFF"]));

    for body in [json!({ "trace_rate": "often" }), json!({ "colour": "red" }), json!({ "trace_level": ["ALL"] })] {
        assert_eq!(post(&world, "/v2/trace/setting", &body).await.0, 400, "{body}");
    }
    let (status, error) = world.rest("GET", "/v2/models/x/trace/setting", "").await;
    assert_eq!((status, &error["code"]), (404, &json!("not_found")));
}

#[tokio::test]
async fn the_log_is_switched_while_it_runs() {
    let world = World::explicit("all", &FILES).await;
    let first = json!({ "log_file": "", "log_info": true, "log_warning": true, "log_error": true,
        "log_verbose_level": 0, "log_format": "default" });
    assert_eq!(get(&world, "/v2/logging").await, first);
    let (status, changed) =
        post(&world, "/v2/logging", &json!({ "log_verbose_level": 2, "log_format": "ISO8601", "log_info": false }))
            .await;
    assert_eq!(status, 200);
    assert_eq!(
        (&changed["log_verbose_level"], &changed["log_format"], &changed["log_info"]),
        (&json!(2), &json!("ISO8601"), &json!(false))
    );
    assert_eq!(get(&world, "/v2/logging").await, changed);
    for body in [
        json!({ "log_file": "/tmp/x" }),
        json!({ "log_format": "xml" }),
        json!({ "log_info": "yes" }),
        json!({ "log_verbose_level": -1 }),
        json!({ "colour": true }),
    ] {
        let (status, error) = post(&world, "/v2/logging", &body).await;
        assert_eq!((status, &error["code"]), (400, &json!("invalid_argument")), "{body}");
    }
    assert_eq!(get(&world, "/v2/logging").await, changed, "what is refused changes nothing");

    let mut client = world.grpc().await;
    let read = client.log_settings(pb::LogSettingsRequest::default()).await.unwrap().into_inner().settings;
    let value = |settings: &std::collections::HashMap<String, log_settings_response::SettingValue>, name: &str| {
        settings[name].parameter_choice.clone().unwrap()
    };
    use log_settings_response::setting_value::ParameterChoice as Told;
    assert_eq!(value(&read, "log_verbose_level"), Told::Uint32Param(2));
    assert_eq!(value(&read, "log_format"), Told::StringParam("ISO8601".into()));
    use log_settings_request::{SettingValue, setting_value::ParameterChoice as Wanted};
    let set = |name: &str, choice| pb::LogSettingsRequest {
        settings: [(name.to_owned(), SettingValue { parameter_choice: Some(choice) })].into(),
    };
    let changed = client.log_settings(set("log_info", Wanted::BoolParam(true))).await.unwrap().into_inner().settings;
    assert_eq!(value(&changed, "log_info"), Told::BoolParam(true));
    let wrong = client.log_settings(set("log_info", Wanted::Uint32Param(1))).await.unwrap_err();
    assert_eq!(wrong.code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn looking_at_settings_needs_no_more_than_inspect() {
    let grants = "[{ to: [\"identity:web\"], intents: [inspect], models: [\"*\"] }]";
    // Not even `explicit`: nothing is changed.
    let world = World::start(Setup::new().with_key().with_grants(grants), &FILES).await;
    for path in ["/v2/trace/setting", "/v2/models/a/trace/setting", "/v2/logging"] {
        assert_eq!(world.rest_as(Some(KEY), "GET", path, "").await.0, 200, "{path}");
        assert_eq!(world.rest_as(Some(KEY), "POST", path, "{}").await.0, 403, "{path}");
        assert_eq!(world.rest("GET", path, "").await.0, 401, "{path}");
    }
    let mut client = world.grpc().await;
    fn asked<T>(message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("authorization", format!("Bearer {KEY}").parse().unwrap());
        request
    }
    client.trace_setting(asked(pb::TraceSettingRequest::default())).await.unwrap();
    client.log_settings(asked(pb::LogSettingsRequest::default())).await.unwrap();
    let grants = "[{ to: [\"identity:web\"], intents: [infer], models: [\"*\"] }]";
    let world = World::start(Setup::new().with_key().with_grants(grants), &FILES).await;
    assert_eq!(world.rest_as(Some(KEY), "GET", "/v2/logging", "").await.0, 403);
    let status = world.grpc().await.log_settings(asked(pb::LogSettingsRequest::default())).await.unwrap_err();
    assert_eq!(status_failure(&status).code, "permission_denied");
}

#[tokio::test]
async fn there_is_no_shared_memory_and_clients_hear_so_in_their_words() {
    let world = World::explicit("all", &FILES).await;
    for kind in ["system", "cuda"] {
        let base = format!("/v2/{kind}sharedmemory");
        for status in ["status", "region/r/status"] {
            assert_eq!(world.rest("GET", &format!("{base}/{status}"), "").await, (200, json!([])));
        }
        for done in ["unregister", "region/r/unregister"] {
            assert_eq!(world.rest("POST", &format!("{base}/{done}"), "").await.0, 200);
        }
        let body = json!({ "key": "/r", "offset": 0, "byte_size": 64 });
        let (status, error) = post(&world, &format!("{base}/region/r/register"), &body).await;
        assert_eq!((status, &error["code"]), (501, &json!("unimplemented")));
    }
    let mut client = world.grpc().await;
    let name = || "r".to_owned();
    let found = client.system_shared_memory_status(pb::SystemSharedMemoryStatusRequest { name: name() }).await.unwrap();
    assert!(found.into_inner().regions.is_empty());
    let found = client.cuda_shared_memory_status(pb::CudaSharedMemoryStatusRequest::default()).await.unwrap();
    assert!(found.into_inner().regions.is_empty());
    client.system_shared_memory_unregister(pb::SystemSharedMemoryUnregisterRequest::default()).await.unwrap();
    client.cuda_shared_memory_unregister(pb::CudaSharedMemoryUnregisterRequest { name: name() }).await.unwrap();
    let register = pb::SystemSharedMemoryRegisterRequest { name: name(), ..Default::default() };
    let status = client.system_shared_memory_register(register).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unimplemented);
    let register = pb::CudaSharedMemoryRegisterRequest { name: name(), ..Default::default() };
    let status = client.cuda_shared_memory_register(register).await.unwrap_err();
    assert_eq!(status_failure(&status).code, "unimplemented");
}

#[tokio::test]
async fn an_input_or_output_that_names_a_region_is_refused() {
    let world = World::explicit("all", &FILES).await;
    let region = json!({ "shared_memory_region": "r", "shared_memory_byte_size": 16 });
    let input = json!({ "name": "x", "datatype": "FP32", "shape": [1, 4] });
    let mut within = input.clone();
    within["parameters"] = region.clone();
    let mut data = input.clone();
    data["data"] = json!([1, 2, 3, 4]);
    for body in
        [json!({ "inputs": [within] }), json!({ "inputs": [data], "outputs": [{ "name": "y", "parameters": region }] })]
    {
        let (status, error) = post(&world, "/v2/models/a/infer", &body).await;
        assert_eq!((status, &error["code"]), (400, &json!("invalid_argument")), "{error}");
        assert!(error["error"].as_str().unwrap().contains("shared_memory"), "{error}");
    }
    let region =
        pb::InferParameter { parameter_choice: Some(pb::infer_parameter::ParameterChoice::StringParam("r".into())) };
    let request = pb::ModelInferRequest {
        model_name: "a".into(),
        inputs: vec![pb::model_infer_request::InferInputTensor {
            name: "x".into(),
            datatype: "FP32".into(),
            shape: vec![1, 4],
            parameters: [("shared_memory_region".to_owned(), region)].into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let status = world.grpc().await.model_infer(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
}
