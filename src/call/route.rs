//! Where calls come in: for labels and names of spans only. Behaviour never depends on it.
//!
//! A closed list, so that no label is made of a client's bytes (invariant 9), and metrics find their counters by number.

/// Names each route once, and numbers them.
macro_rules! routes {
    ($($variant:ident = $name:literal,)*) => {
        /// Where a call came in: the template of a path, or a method.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        #[expect(missing_docs, reason = "their names say what they are")]
        pub enum Route {
            $($variant,)*
            /// None of these: a front-end that does not say.
            #[default]
            Other,
        }

        impl Route {
            /// Every route.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)* Self::Other];

            /// The label of metrics.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                    Self::Other => "other",
                }
            }
        }
    };
}

routes! {
    GrpcInfer = "/inference.GRPCInferenceService/ModelInfer",
    GrpcStream = "/inference.GRPCInferenceService/ModelStreamInfer",
    GrpcPredict = "/tensorflow.serving.PredictionService/Predict",
    Infer = "/v2/models/{model}/infer",
    InferStream = "/v2/models/{model}/infer_stream",
    Generate = "/v2/models/{model}/generate",
    GenerateStream = "/v2/models/{model}/generate_stream",
    Server = "/v2",
    Models = "/v2/models",
    AllStatistics = "/v2/models/stats",
    Model = "/v2/models/{model}",
    ModelReady = "/v2/models/{model}/ready",
    ModelConfig = "/v2/models/{model}/config",
    ModelStatistics = "/v2/models/{model}/stats",
    ModelTrace = "/v2/models/{model}/trace/setting",
    RepositoryIndex = "/v2/repository/index",
    RepositoryLoad = "/v2/repository/models/{model}/load",
    RepositoryUnload = "/v2/repository/models/{model}/unload",
    Trace = "/v2/trace/setting",
    Logging = "/v2/logging",
    SystemMemory = "/v2/systemsharedmemory/status",
    SystemMemoryRegion = "/v2/systemsharedmemory/region/{region}/status",
    SystemMemoryRegister = "/v2/systemsharedmemory/region/{region}/register",
    SystemMemoryUnregisterRegion = "/v2/systemsharedmemory/region/{region}/unregister",
    SystemMemoryUnregister = "/v2/systemsharedmemory/unregister",
    CudaMemory = "/v2/cudasharedmemory/status",
    CudaMemoryRegion = "/v2/cudasharedmemory/region/{region}/status",
    CudaMemoryRegister = "/v2/cudasharedmemory/region/{region}/register",
    CudaMemoryUnregisterRegion = "/v2/cudasharedmemory/region/{region}/unregister",
    CudaMemoryUnregister = "/v2/cudasharedmemory/unregister",
    V1Models = "/v1/models",
    V1Model = "/v1/models/{model}",
    V1Version = "/v1/models/{model}/versions/{version}",
    V1Label = "/v1/models/{model}/labels/{label}",
    V1Metadata = "/v1/models/{model}/metadata",
    V1Predict = "/v1/models/{model}:predict",
    V1Classify = "/v1/models/{model}:classify",
    V1Regress = "/v1/models/{model}:regress",
    Predict = "/predict",
    Metrics = "/metrics",
    WebSocket = "/v1/ws",
    Tickets = "/v1/ws/tickets",
    Lines = "/v2/stream",
    GrpcModelReady = "/inference.GRPCInferenceService/ModelReady",
    GrpcServer = "/inference.GRPCInferenceService/ServerMetadata",
    GrpcModel = "/inference.GRPCInferenceService/ModelMetadata",
    GrpcConfig = "/inference.GRPCInferenceService/ModelConfig",
    GrpcStatistics = "/inference.GRPCInferenceService/ModelStatistics",
    GrpcIndex = "/inference.GRPCInferenceService/RepositoryIndex",
    GrpcLoad = "/inference.GRPCInferenceService/RepositoryModelLoad",
    GrpcUnload = "/inference.GRPCInferenceService/RepositoryModelUnload",
    GrpcSystemMemory = "/inference.GRPCInferenceService/SystemSharedMemoryStatus",
    GrpcSystemMemoryRegister = "/inference.GRPCInferenceService/SystemSharedMemoryRegister",
    GrpcSystemMemoryUnregister = "/inference.GRPCInferenceService/SystemSharedMemoryUnregister",
    GrpcCudaMemory = "/inference.GRPCInferenceService/CudaSharedMemoryStatus",
    GrpcCudaMemoryRegister = "/inference.GRPCInferenceService/CudaSharedMemoryRegister",
    GrpcCudaMemoryUnregister = "/inference.GRPCInferenceService/CudaSharedMemoryUnregister",
    GrpcTrace = "/inference.GRPCInferenceService/TraceSetting",
    GrpcLogging = "/inference.GRPCInferenceService/LogSettings",
    GrpcModelMetadata = "/tensorflow.serving.PredictionService/GetModelMetadata",
    GrpcModelStatus = "/tensorflow.serving.ModelService/GetModelStatus",
    GrpcHealth = "/grpc.health.v1.Health/Check",
    GrpcHealthWatch = "/grpc.health.v1.Health/Watch",
    GrpcHealthList = "/grpc.health.v1.Health/List",
}

impl Route {
    /// The route with this name; [`Route::Other`] if there is none. Busy methods are found first.
    pub fn named(name: &str) -> Self {
        Self::ALL.iter().copied().find(|route| route.name() == name).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_route_has_a_name_and_a_number_of_its_own() {
        let names: HashSet<_> = Route::ALL.iter().map(|route| route.name()).collect();
        assert_eq!(names.len(), Route::ALL.len());
        assert!(Route::ALL.iter().enumerate().all(|(number, route)| *route as usize == number));
        assert_eq!(Route::named("/v1/ws"), Route::WebSocket);
        assert_eq!(Route::named("/v1/models/secret"), Route::Other);
    }
}
