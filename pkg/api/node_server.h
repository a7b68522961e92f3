// The gRPC server of proto/bim/v1: VersionService, DiskService, ImageService,
// LimitService, with reflection and the standard health service.
//
// It accepts its connections itself and gives them to gRPC, so that the
// listening sockets can be handed to a successor. Bounded: connections, open
// streams, calls that wait for a worker, message size. No TLS: listen where
// only those who may do everything can reach it.
// Thread-safety: Start, Shutdown, StopAccepting and the destructor on one
// thread, which is neither the loop's nor one of the pool.
#pragma once

#include <grpcpp/impl/codegen/service_type.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "pkg/api/negotiation.h"
#include "pkg/base/status.h"
#include "pkg/base/unique_fd.h"
#include "pkg/exec/event_loop.h"
#include "pkg/exec/worker_pool.h"
#include "pkg/handover/control.h"
#include "pkg/manager/manager.h"
#include "pkg/meta/version.h"

namespace bim::api {

class NodeServer {
 public:
  struct Options {
    std::string manager_id;
    std::string data_endpoint;  // host:port, empty when images are not served
    int max_message_bytes = 4 << 20;  // of a request
    size_t max_connections = 1024;
    size_t max_streams = 256;         // Watch and Verify
    size_t max_blocking_calls = 128;  // that wait for or have a worker
    meta::VersionRange versions = OurVersions();
    // HandoverService; null: FAILED_PRECONDITION. Outlives the server, and what
    // runs on `pool`.
    handover::Control* hand_over = nullptr;
    // Further services on the same port. `close` is called in Shutdown, before
    // the server's own end: no call of the service may be under way after it.
    // They outlive the server.
    struct Service {
      grpc::Service* service = nullptr;
      std::function<void(std::chrono::steady_clock::time_point deadline)> close;
    };
    std::vector<Service> services = {};
  };

  // Serves connections of the listening sockets (api::Listen, or inherited)
  // until Shutdown. `manager`, `loop` and `pool` outlive the server; `manager`
  // also what runs on `pool` when Shutdown returns: shut the pool down before
  // the manager is destroyed. INTERNAL: gRPC does not start.
  static base::Result<std::unique_ptr<NodeServer>> Start(
      Options options, manager::Manager& manager, exec::EventLoop& loop,
      exec::WorkerPool& pool, std::vector<base::UniqueFd> listeners);

  // As Shutdown(0).
  virtual ~NodeServer() = default;

  // Accepts no more connections and gives the listening sockets away, still
  // listening: what waits in their queues waits for their next owner. Open
  // connections are served on. Empty on a second call.
  virtual std::vector<base::UniqueFd> StopAccepting() = 0;

  // Blocks: accepts no more, ends the streams with UNAVAILABLE, waits up to
  // `grace` for calls to be answered, then cancels what is left. Takes at most
  // `grace` and a moment, whatever clients and workers do. Idempotent.
  virtual void Shutdown(std::chrono::milliseconds grace) = 0;

 protected:
  NodeServer() = default;
};

}  // namespace bim::api
