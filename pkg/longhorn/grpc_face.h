// The gRPC service that Longhorn's control plane calls (proto/bimrpc), on the
// manager's directed copies. It is registered with the server of the node API
// and shares its port.
//
// Thread-safety: Make, Close and the destructor on one thread; the service is
// gRPC's to call.
#pragma once

#include <grpcpp/impl/codegen/service_type.h>

#include <chrono>
#include <memory>
#include <string>

#include "pkg/base/status.h"
#include "pkg/exec/event_loop.h"
#include "pkg/exec/worker_pool.h"
#include "pkg/manager/manager.h"

namespace bim::longhorn {

// The request metadata that selects a disk, by uuid or path.
inline constexpr char kDiskKey[] = "bim-disk";

class GrpcFace {
 public:
  struct Options {
    // The port where others reach the HTTP file service; 0: there is none. The
    // host they are told; empty: ours, on the way to who asks.
    uint16_t download_port = 0;
    std::string download_host;
    size_t max_streams = 256;
    size_t max_blocking_calls = 128;
  };
  // All outlive the face.
  static std::unique_ptr<GrpcFace> Make(Options options,
                                        manager::Manager& manager,
                                        exec::EventLoop& loop,
                                        exec::WorkerPool& pool);
  virtual ~GrpcFace() = default;
  // Outlives the server that it is registered with.
  virtual grpc::Service& service() = 0;
  // Ends the streams and refuses calls; answers those under way at the latest
  // by then. Before the server shuts down. Blocks.
  virtual void Close(std::chrono::steady_clock::time_point deadline) = 0;
};

}  // namespace bim::longhorn
