// A client command's line to the daemon: calls with a deadline, and what their
// failures mean for the person and the exit code.
//
// Blocks. One thread.
#pragma once

#include <grpcpp/client_context.h>

#include <chrono>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <utility>

#include "bim/v1/node.grpc.pb.h"
#include "daemon/exit_code.h"
#include "pkg/api/client.h"
#include "pkg/base/status.h"

namespace bim::daemon {

// How a command ended; `message` goes to standard error unless empty.
struct CommandEnd {
  ExitCode exit_code = ExitCode::kOk;
  std::string message;

  bool ok() const { return exit_code == ExitCode::kOk; }
};

// The exit code of a failure that the daemon (or a file) answered with.
ExitCode ExitCodeOf(base::Code code);

// Where the daemon is when nobody says: its socket if there is one, else the
// default TCP address.
std::string DefaultAddress();

class Connection {
 public:
  using Clock = std::chrono::steady_clock;

  // Connects. `deadline`: when --timeout passes. `stop` ends calls early.
  // kUnreachable, or kUsage when `address` is none.
  static CommandEnd Open(const std::string& address,
                         std::optional<Clock::time_point> deadline,
                         std::stop_token stop,
                         std::unique_ptr<Connection>& connection);

  const std::string& address() const { return client_->address(); }
  v1::ImageService::Stub& images() { return client_->images(); }
  v1::DiskService::Stub& disks() { return client_->disks(); }
  v1::LimitService::Stub& limits() { return client_->limits(); }
  v1::VersionService::Stub& version() { return client_->version(); }

  // For the stubs of other services.
  const std::shared_ptr<grpc::Channel>& channel() const {
    return client_->channel();
  }

  // A call that answers at once: `stub.*method(request, response)`.
  template <typename Stub, typename Request, typename Response>
  CommandEnd Call(Stub& stub,
                  grpc::Status (Stub::*method)(grpc::ClientContext*,
                                               const Request&, Response*),
                  const Request& request, Response& response) {
    grpc::ClientContext context;
    api::Client::PrepareContext(context, TimeLeft());
    const std::stop_callback cancel(stop_, [&] { context.TryCancel(); });
    return Explain((stub.*method)(&context, request, &response));
  }

  // What a status means. kOk for OK.
  CommandEnd Explain(const grpc::Status& status) const;
  // After the daemon went away: tries until it is back (true), `wait` passed or
  // the command is to stop. The stubs are others afterwards.
  bool Reconnect(std::chrono::milliseconds wait);

 private:
  Connection(std::unique_ptr<api::Client> client,
             std::optional<Clock::time_point> deadline, std::stop_token stop)
      : client_(std::move(client)),
        deadline_(deadline),
        stop_(std::move(stop)) {}

  // For a call that answers at once; at least 1 ms.
  std::chrono::milliseconds TimeLeft() const;

  std::unique_ptr<api::Client> client_;
  const std::optional<Clock::time_point> deadline_;
  const std::stop_token stop_;
};

}  // namespace bim::daemon
