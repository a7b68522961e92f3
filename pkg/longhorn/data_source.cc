#include "pkg/longhorn/data_source.h"

#include <condition_variable>
#include <mutex>
#include <optional>
#include <stop_token>
#include <thread>
#include <utility>

#include "pkg/base/log.h"
#include "pkg/base/names.h"
#include "pkg/longhorn/file_info.h"
#include "pkg/longhorn/file_service.h"
#include "pkg/longhorn/form.h"

namespace bim::longhorn {
namespace {

using manager::CopyState;
using manager::DirectedStatus;

constexpr char kFile[] = "/v1/file";
// Callers know these words.
constexpr char kTooLate[] =
    "timeout waiting for the datasource file processing begin";

class DataSourceImpl final : public DataSource {
 public:
  DataSourceImpl(Options options, manager::Manager& manager)
      : options_(std::move(options)), manager_(manager) {}

  void Begin() override {
    const auto made = manager_.Direct(options_.spec);
    if (made.ok()) {
      watch_ = std::jthread([this](std::stop_token stop) { AwaitBegin(stop); });
      return;
    }
    BIM_LOG_ERROR("{}: {}", options_.file_path, made.status().message());
    std::lock_guard lock(mutex_);
    refused_ = made.status();
  }

  http::Handler Handler() override {
    return [this](const http::Request& request) { return Serve(request); };
  }

 private:
  http::Response Serve(const http::Request& request) {
    if (request.path != kFile) {
      return HttpFailure(base::NotFoundError(
          "cannot find this path: expected " + std::string(kFile)));
    }
    const auto form = Form::Parse(request.query);
    if (!form.ok()) return HttpFailure(form.status());
    if (request.method == "GET" || request.method == "HEAD") return Show();
    if (request.method != "POST") {
      http::Response response;
      response.status = 405;
      response.headers.emplace_back("Allow", "GET, HEAD, POST");
      response.body = "expected one of the methods GET, HEAD, POST\n";
      return response;
    }
    const auto action = form->Need("action");
    if (!action.ok()) return HttpFailure(action.status());
    if (*action == "transfer") return Transfer();
    if (*action == "upload") return Upload(*form, request);
    return HttpFailure(base::InvalidArgumentError(
        "parameter action: expected upload or transfer, found '" +
        base::Printable(*action) + "'"));
  }

  // Fails what has not begun in time.
  void AwaitBegin(std::stop_token stop) {
    std::unique_lock lock(mutex_);
    std::condition_variable_any stopped;
    stopped.wait_for(lock, stop, options_.begin_timeout, [] { return false; });
    if (stop.stop_requested() || transferred_) return;
    const CopyState state = Now().copy.state;
    if (state != CopyState::kPending && state != CopyState::kStarting) return;
    const base::Status late = base::DeadlineExceededError(kTooLate);
    BIM_LOG_ERROR("{}: {}", options_.file_path, late.message());
    if (const base::Status removed =
            manager_.RemoveDirected("", options_.spec.name, options_.spec.uuid);
        !removed.ok()) {
      BIM_LOG_WARN("{}: {}", options_.file_path, removed.message());
    }
    refused_ = late;
  }

  // As it is now. Locked.
  DirectedStatus Now() {
    if (transferred_) return *transferred_;
    const auto now =
        manager_.GetDirected("", options_.spec.name, options_.spec.uuid);
    if (now.ok()) return *now;
    DirectedStatus failed;
    failed.name = options_.spec.name;
    failed.uuid = options_.spec.uuid;
    failed.expected_sha512 = options_.spec.sha512;
    failed.size = options_.spec.size;
    const auto disks = manager_.ListDisks();
    if (!disks.empty()) failed.copy.disk_uuid = disks.front().uuid;
    failed.copy.state = CopyState::kFailed;
    failed.copy.message =
        refused_.ok() ? now.status().message() : refused_.message();
    return failed;
  }

  http::Response Show() {
    DirectedStatus status;
    bool transferred = false;
    {
      std::lock_guard lock(mutex_);
      status = Now();
      transferred = transferred_.has_value();
    }
    auto info = FileInfo(status, options_.file_path);
    if (status.copy.state == CopyState::kReady && !transferred) {
      info["state"] = "ready-for-transfer";
    }
    info["sourceType"] = options_.type;
    info["parameters"] = options_.parameters;
    info["name"] = status.name;
    http::Response response;
    response.content_type = "application/json";
    response.headers.emplace_back("Cache-Control", "no-store");
    response.body = ToText(info);
    return response;
  }

  http::Response Transfer() {
    std::lock_guard lock(mutex_);
    if (transferred_) return {};
    DirectedStatus status = Now();
    if (status.copy.state != CopyState::kReady) {
      return HttpFailure(base::FailedPreconditionError(
          "the file can be transferred when it is ready-for-transfer, it is " +
          std::string(manager::CopyStateName(status.copy.state))));
    }
    if (base::Status forgotten =
            manager_.ForgetDirected("", options_.spec.name, options_.spec.uuid);
        !forgotten.ok()) {
      return HttpFailure(forgotten);
    }
    BIM_LOG_INFO("{}: transferred", options_.file_path);
    transferred_ = std::move(status);
    return {};
  }

  http::Response Upload(const Form& form, const http::Request& request) {
    if (!options_.spec.source.upload) {
      return HttpFailure(base::FailedPreconditionError(
          "this data source is no upload but a " + options_.type));
    }
    if (const auto given = form.Need("size"); !given.ok()) {
      return HttpFailure(given.status());
    }
    const auto size = form.Size("size");
    if (!size.ok()) return HttpFailure(size.status());
    {
      std::lock_guard lock(mutex_);
      if (!refused_.ok()) return HttpFailure(refused_);
    }
    if (*size == 0) {
      return HttpFailure(base::InvalidArgumentError(
          "parameter size: expected more than 0, found 0"));
    }
    return ServeUpload(manager_, "", {options_.spec.name, options_.spec.uuid},
                       *size, request);
  }

  const Options options_;
  manager::Manager& manager_;
  std::mutex mutex_;
  // As it was when it was let go of.
  std::optional<DirectedStatus> transferred_;
  base::Status refused_;
  std::jthread watch_;  // the last: it uses the others
};

}  // namespace

std::unique_ptr<DataSource> DataSource::Make(Options options,
                                             manager::Manager& manager) {
  return std::make_unique<DataSourceImpl>(std::move(options), manager);
}

}  // namespace bim::longhorn
