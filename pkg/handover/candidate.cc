#include "pkg/handover/candidate.h"

#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <mutex>
#include <thread>
#include <utility>

#include "pkg/base/log.h"
#include "pkg/base/names.h"
#include "pkg/store/disk.h"
#include "pkg/store/history.h"
#include "pkg/store/managers.h"

namespace bim::handover {
namespace {

using base::Code;
using base::Result;
using base::UniqueFd;
using nlohmann::json;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kTick{100};
constexpr milliseconds kAnswerTimeout{2'000};
constexpr milliseconds kLookAgain{300};
constexpr milliseconds kReadyAgain{1'000};

// A conversation with the owner of the disk at `path`, begun by both hellos.
struct Greeted {
  std::unique_ptr<Talk> talk;
  Party owner;
};
Result<Greeted> Greet(const std::string& path, const Party& self) {
  BIM_ASSIGN_OR_RETURN(const io::Dir root, io::Dir::Open(path));
  Greeted greeted;
  BIM_ASSIGN_OR_RETURN(greeted.talk, Talk::Connect(root));
  BIM_RETURN_IF_ERROR(greeted.talk->Send(ToHello(self)));
  const auto until = steady_clock::now() + kAnswerTimeout;
  while (steady_clock::now() < until) {
    BIM_ASSIGN_OR_RETURN(auto packet, greeted.talk->Receive(milliseconds(200)));
    if (!packet) continue;
    BIM_ASSIGN_OR_RETURN(greeted.owner, FromHello(packet->document));
    return greeted;
  }
  return base::UnavailableError("the owner of the disk at " + path +
                                " does not answer");
}

class CandidateImpl final : public Candidate {
 public:
  CandidateImpl(Options options, Host& host)
      : options_(std::move(options)), host_(host) {
    worker_ = std::thread([this] { Work(); });
  }
  ~CandidateImpl() override {
    Stop();
    worker_.join();
    if (reader_.joinable()) reader_.join();
  }

  void Stop() override {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
      if (talk_) talk_->Close();
    }
    changed_.notify_all();
  }

  base::Status Begin(bool automatic) override {
    std::lock_guard one_at_a_time(begin_mutex_);
    BIM_RETURN_IF_ERROR(CheckIdle());
    BIM_RETURN_IF_ERROR(automatic ? Connect() : ConnectSoon());
    auto answer = std::make_shared<std::promise<base::Status>>();
    auto future = answer->get_future();
    {
      std::lock_guard lock(mutex_);
      if (stopping_) return base::UnavailableError("the daemon is stopping");
      id_.clear();  // that of the one before; the owner says the new one's
      begins_.push_back(std::move(answer));
      queue_.push_back(automatic ? CandidateEvent::kBeginAutomatic
                                 : CandidateEvent::kBegin);
    }
    changed_.notify_all();
    if (future.wait_for(options_.confirm_timeout) ==
        std::future_status::ready) {
      return future.get();
    }
    return base::DeadlineExceededError("the owner does not answer");
  }

  base::Status WouldBegin(bool automatic) override {
    BIM_RETURN_IF_ERROR(CheckIdle());
    BIM_ASSIGN_OR_RETURN(const Greeted greeted, FindOwner());
    BIM_RETURN_IF_ERROR(CheckDistinct(greeted.owner, options_.self, automatic));
    for (const std::string& path : host_.DiskPaths()) {
      const auto root = io::Dir::Open(path);
      if (!root.ok()) continue;
      const auto record = store::ReadHandover(*root);
      if (record.ok() && *record && (*record)->phase == HandoverPhase::kBegun &&
          (*record)->owner == greeted.owner.manager_id &&
          (*record)->candidate != options_.self.manager_id) {
        return OneAtATimeError((*record)->candidate, (*record)->id);
      }
    }
    return base::OkStatus();
  }

  bool Resume() override {
    for (const std::string& path : host_.DiskPaths()) {
      const auto root = io::Dir::Open(path);
      if (!root.ok()) continue;
      const auto record = store::ReadHandover(*root);
      if (!record.ok() || !*record ||
          (*record)->phase == HandoverPhase::kRolledBack ||
          (*record)->candidate != options_.self.manager_id ||
          (*record)->owner == options_.self.manager_id) {
        continue;
      }
      // Ours already, and settled.
      if ((*record)->phase == HandoverPhase::kConfirmed) {
        const auto owner = store::ReadOwner(*root);
        if (owner.ok() && owner->manager_id == options_.self.manager_id) {
          continue;
        }
      }
      {
        std::lock_guard lock(mutex_);
        if (state_.stage != CandidateStage::kIdle) return true;
        state_.stage = CandidateStage::kLost;
        state_.automatic = (*record)->automatic;
        id_ = (*record)->id;
        owner_.manager_id = (*record)->owner;
        owner_.version = (*record)->owner_version;
      }
      changed_.notify_all();
      return true;
    }
    return false;
  }

  base::Status Confirm(milliseconds wait) override {
    return Decide(CandidateEvent::kConfirm, wait);
  }
  base::Status Rollback(milliseconds wait) override {
    return Decide(CandidateEvent::kRollback, wait);
  }

  base::Status Would(bool confirm) override {
    std::lock_guard lock(mutex_);
    CandidateState state = state_;
    for (const CandidateEffect effect :
         Step(state,
              confirm ? CandidateEvent::kConfirm : CandidateEvent::kRollback)) {
      if (const auto answer = AnswerOf(effect)) return *answer;
    }
    return base::OkStatus();
  }

  Status Now() override {
    std::lock_guard lock(mutex_);
    Status status;
    status.id = id_;
    status.phase = std::string(CandidateStageName(state_.stage));
    status.automatic = state_.automatic;
    status.owner = owner_;
    status.candidate = options_.self;
    status.connected = talk_ != nullptr;
    status.ready = state_.stage == CandidateStage::kReady;
    status.message = Message();
    return status;
  }
  CandidateStage Stage() override {
    std::lock_guard lock(mutex_);
    return state_.stage;
  }

  std::vector<ListeningSocket> TakeSockets() override {
    std::unique_lock lock(mutex_);
    if (!talk_) return {};
    sockets_.reset();
    const auto talk = talk_;
    lock.unlock();
    if (!talk->Send({{"bim", "sockets"}}).ok()) return {};
    lock.lock();
    changed_.wait_for(lock, kAnswerTimeout,
                      [&] { return stopping_ || sockets_ || talk_ != talk; });
    std::vector<ListeningSocket> taken;
    if (sockets_) taken = *std::move(sockets_);
    sockets_.reset();
    return taken;
  }

  bool AwaitOwning() override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] {
      return stopping_ || state_.stage == CandidateStage::kOwning ||
             state_.stage == CandidateStage::kIdle;
    });
    return state_.stage == CandidateStage::kOwning;
  }

 private:
  base::Status CheckIdle() {
    std::lock_guard lock(mutex_);
    if (state_.stage == CandidateStage::kIdle) return base::OkStatus();
    return base::FailedPreconditionError(
        "a hand-over goes on already: it is " +
        std::string(CandidateStageName(state_.stage)));
  }

  // Locked.
  std::string Message() const {
    const std::string who = "manager " + owner_.manager_id;
    const bool silent = steady_clock::now() > heard_ + 2 * options_.heartbeat;
    switch (state_.stage) {
      case CandidateStage::kInterrupted:
        return Interrupted();
      case CandidateStage::kLost:
        return who +
               ", the owner, does not answer; its disks are locked by it, and "
               "nobody takes them from a living process: it goes on when it "
               "answers, or when it is ended";
      case CandidateStage::kBeginning:
      case CandidateStage::kLoading:
      case CandidateStage::kReady:
        if (silent) {
          return who +
                 ", the owner, hangs: it is waited for until it answers or is "
                 "ended";
        }
        if (state_.stage == CandidateStage::kReady && !state_.automatic) {
          return "ready: \"bim handover confirm\" or \"bim handover rollback\"";
        }
        return "";
      default:
        return "";
    }
  }
  std::string Interrupted() const {
    return "the owner, manager " + owner_.manager_id +
           ", is gone and nothing was decided: \"bim handover confirm\" gives "
           "the disks to this manager, \"bim handover rollback\" leaves them "
           "to "
           "the owner's restart";
  }

  base::Status Decide(CandidateEvent event, milliseconds wait) {
    auto answer = std::make_shared<std::promise<base::Status>>();
    auto future = answer->get_future();
    {
      std::lock_guard lock(mutex_);
      if (stopping_) return base::UnavailableError("the daemon is stopping");
      decisions_.push_back(std::move(answer));
      queue_.push_back(event);
    }
    changed_.notify_all();
    if (future.wait_for(wait) == std::future_status::ready) {
      return future.get();
    }
    std::lock_guard lock(mutex_);
    return base::DeadlineExceededError(
        "the owner, manager " + owner_.manager_id +
        ", does not answer; this is done when it answers, or is ended");
  }

  // --- the worker

  void Work() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      changed_.wait_for(lock, kTick,
                        [&] { return stopping_ || !queue_.empty(); });
      if (stopping_) break;
      if (queue_.empty()) {
        Look(lock);
        continue;
      }
      const CandidateEvent event = queue_.front();
      queue_.pop_front();
      Do(lock, event);
    }
    const auto stopped = base::UnavailableError("the daemon is stopping");
    for (auto* answers : {&begins_, &decisions_}) {
      for (auto& answer : *answers) answer->set_value(stopped);
      answers->clear();
    }
  }

  void Do(std::unique_lock<std::mutex>& lock, CandidateEvent event) {
    std::deque<CandidateEvent> events{event};
    while (!events.empty()) {
      const CandidateEvent now = events.front();
      events.pop_front();
      const CandidateStage before = state_.stage;
      const CandidateEffects effects = Step(state_, now);
      if (now == CandidateEvent::kBegun) AnswerAll(begins_, base::OkStatus());
      // (Else it was the conversation before the one that is being begun.)
      if (now == CandidateEvent::kDisconnected &&
          before == CandidateStage::kBeginning) {
        // (It may have agreed all the same: then that lies on the disks.)
        AnswerAll(begins_, base::UnavailableError(
                               "the owner is gone, or does not talk any more, "
                               "before it agreed: the status tells what is"));
      }
      if (now == CandidateEvent::kRolledBack ||
          now == CandidateEvent::kFreeRolledBack) {
        BIM_LOG_INFO("hand-over {}: rolled back", id_);
      }
      for (const CandidateEffect effect : effects) {
        if (auto next = Perform(lock, effect)) events.push_back(*next);
      }
    }
    changed_.notify_all();
  }

  std::optional<CandidateEvent> Perform(std::unique_lock<std::mutex>& lock,
                                        CandidateEffect effect) {
    switch (effect) {
      case CandidateEffect::kSendBegin:
        if (!talk_) return CandidateEvent::kDisconnected;  // it ended already
        Say({{"bim", "begin"}, {"automatic", state_.automatic}});
        break;
      case CandidateEffect::kSendReady:
        if (steady_clock::now() < said_ready_ + kReadyAgain) {
          say_ready_ = true;  // soon: the owner could not go on
        } else {
          SayReady();
        }
        break;
      case CandidateEffect::kSendAccepted:
        Say({{"bim", "accepted"}});
        break;
      case CandidateEffect::kSendConfirm:
        Say({{"bim", "confirm"}});
        break;
      case CandidateEffect::kSendRollback:
        Say({{"bim", "rollback"}});
        break;
      case CandidateEffect::kSendOwned:
        Say({{"bim", "owned"}});
        break;
      case CandidateEffect::kLoad:
        lock.unlock();
        Register();
        host_.Load();
        lock.lock();
        return CandidateEvent::kLoaded;
      case CandidateEffect::kReconnect:
        look_again_ = {};
        break;
      case CandidateEffect::kClaim: {
        lock.unlock();
        const base::Status claimed = host_.Claim();
        if (!claimed.ok()) {
          BIM_LOG_ERROR("hand-over {}: {}", id_, claimed.message());
        }
        lock.lock();
        return claimed.ok() ? CandidateEvent::kClaimed
                            : CandidateEvent::kNotClaimed;
      }
      case CandidateEffect::kTellOperator: {
        const std::string text = Interrupted();
        BIM_LOG_WARN("hand-over {}: interrupted: {}", id_, text);
        lock.unlock();
        TellInterrupted(text);
        lock.lock();
        break;
      }
      case CandidateEffect::kAnswerRefused:
        AnswerAll(begins_, *AnswerOf(effect));
        [[fallthrough]];
      case CandidateEffect::kAnswerOk:
      case CandidateEffect::kAnswerNothing:
      case CandidateEffect::kAnswerTimeout:
      case CandidateEffect::kAnswerDecided:
      case CandidateEffect::kAnswerRolledBack:
        AnswerAll(decisions_, *AnswerOf(effect));
        break;
    }
    return std::nullopt;
  }

  // What who waits for a decision is told. nullopt: it is another effect.
  std::optional<base::Status> AnswerOf(CandidateEffect effect) const {
    switch (effect) {
      case CandidateEffect::kAnswerOk:
        return base::OkStatus();
      case CandidateEffect::kAnswerRefused:
        return base::FailedPreconditionError(refused_);
      case CandidateEffect::kAnswerNothing:
        return NothingToDecideError();
      case CandidateEffect::kAnswerTimeout:
        return base::DeadlineExceededError("the owner did not confirm: " +
                                           refused_);
      case CandidateEffect::kAnswerDecided:
        return base::FailedPreconditionError(
            "the hand-over was confirmed: it cannot be rolled back any more");
      case CandidateEffect::kAnswerRolledBack:
        return base::FailedPreconditionError("the hand-over was rolled back");
      default:
        return std::nullopt;
    }
  }

  using Answers = std::vector<std::shared_ptr<std::promise<base::Status>>>;
  static void AnswerAll(Answers& answers, const base::Status& status) {
    for (auto& answer : answers) answer->set_value(status);
    answers.clear();
  }

  void SayReady() {
    say_ready_ = false;
    said_ready_ = steady_clock::now();
    Say({{"bim", "ready"}});
  }

  // Locked. What cannot be sent is lost with the conversation.
  void Say(const json& document) {
    if (talk_ && !talk_->Send(document).ok()) talk_->Close();
  }

  // --- the owner: in a conversation, or gone

  base::Status Connect() {
    BIM_ASSIGN_OR_RETURN(Greeted greeted, FindOwner());
    Adopt(std::move(greeted));
    return base::OkStatus();
  }

  // One that has just taken the disks listens on them a moment later.
  base::Status ConnectSoon() {
    const auto until = steady_clock::now() + kAnswerTimeout;
    while (true) {
      base::Status connected = Connect();
      if (connected.code() != Code::kUnavailable) return connected;
      std::unique_lock lock(mutex_);
      if (changed_.wait_for(lock, kTick, [&] { return stopping_; }) ||
          steady_clock::now() >= until) {
        return connected;
      }
    }
  }

  base::Result<Greeted> FindOwner() {
    base::Status problem = base::NotFoundError(
        "no process owns a disk of this manager: there is nothing to take "
        "over");
    for (const std::string& path : host_.DiskPaths()) {
      auto greeted = Greet(path, options_.self);
      if (!greeted.ok()) {
        const auto root = io::Dir::Open(path);
        if (root.ok() &&
            store::LockUnowned(*root).status().code() == Code::kAborted) {
          problem = base::UnavailableError(
              "the owner of the disk at " + path +
              " cannot be reached: " + greeted.status().message());
        }
        continue;
      }
      if (greeted->owner.instance == options_.self.instance) continue;
      BIM_RETURN_IF_ERROR(CheckCompatible(greeted->owner, options_.self));
      return greeted;
    }
    return problem;
  }

  void Adopt(Greeted greeted) {
    {
      std::lock_guard lock(mutex_);
      if (talk_) talk_->Close();
    }
    if (reader_.joinable()) reader_.join();
    std::lock_guard lock(mutex_);
    talk_ = std::move(greeted.talk);
    owner_ = std::move(greeted.owner);
    heard_ = steady_clock::now();
    reader_ = std::thread([this, talk = talk_] { Read(talk); });
  }

  void Read(const std::shared_ptr<Talk>& talk) {
    auto last_sign = steady_clock::now();
    for (;;) {
      auto packet = talk->Receive(milliseconds(100));
      if (!packet.ok()) break;
      const auto now = steady_clock::now();
      if (now >= last_sign + options_.heartbeat) {
        last_sign = now;
        if (!talk->Send({{"bim", "alive"}}).ok()) break;
      }
      if (*packet) Heard(**std::move(packet));
    }
    talk->Close();
    {
      std::lock_guard lock(mutex_);
      if (talk_ == talk) {
        talk_.reset();
        queue_.push_back(CandidateEvent::kDisconnected);
      }
    }
    changed_.notify_all();
  }

  void Heard(Talk::Packet packet) {
    const std::string what = TextOf(packet.document, "bim");
    std::lock_guard lock(mutex_);
    heard_ = steady_clock::now();
    if (what == "sockets") {
      std::vector<ListeningSocket> sockets;
      const auto& addresses = packet.document["addresses"];
      for (size_t i = 0;
           addresses.is_array() && i < addresses.size() &&
           i < packet.descriptors.size() && addresses[i].is_string();
           ++i) {
        sockets.push_back({addresses[i].get<std::string>(),
                           std::move(packet.descriptors[i])});
      }
      sockets_ = std::move(sockets);
    } else if (what == "begun") {
      id_ = TextOf(packet.document, "id");
      queue_.push_back(CandidateEvent::kBegun);
    } else if (what == "refused") {
      refused_ = base::Printable(TextOf(packet.document, "why"), 1000);
      queue_.push_back(CandidateEvent::kRefused);
    } else if (what == "asked") {
      queue_.push_back(CandidateEvent::kAsked);
    } else if (what == "withdrawn") {
      refused_ = "it waited too long, or no disk took the decision";
      queue_.push_back(CandidateEvent::kWithdrawn);
    } else if (what == "released") {
      queue_.push_back(CandidateEvent::kReleased);
    } else if (what == "rolled-back") {
      queue_.push_back(CandidateEvent::kRolledBack);
    }
    changed_.notify_all();
  }

  // What only informs people: that it cannot be written stops nothing.
  void ForEachDisk(const std::function<base::Status(const io::Dir&)>& write) {
    for (const std::string& path : host_.DiskPaths()) {
      const auto root = io::Dir::Open(path);
      const base::Status written = root.ok() ? write(*root) : root.status();
      if (!written.ok()) {
        BIM_LOG_WARN("disk at {}: {}", path, written.message());
      }
    }
  }
  // Shows this process among the disks' managers.
  void Register() {
    ForEachDisk([this](const io::Dir& root) {
      return store::WriteCandidate(
          root, {options_.self.manager_id, options_.self.version,
                 options_.self.endpoint});
    });
  }
  void TellInterrupted(const std::string& message) {
    ForEachDisk([&](const io::Dir& root) {
      store::HistoryEntry entry;
      entry.what = store::HistoryEvent::kInterrupted;
      entry.message = message;
      entry.manager_id = options_.self.manager_id;
      entry.version = options_.self.version;
      return store::AppendHistory(root, entry);
    });
  }

  // From time to time, while the owner does not talk to us.
  void Look(std::unique_lock<std::mutex>& lock) {
    const auto now = steady_clock::now();
    if (say_ready_ && state_.stage == CandidateStage::kReady &&
        now >= said_ready_ + kReadyAgain) {
      SayReady();
    }
    if ((state_.stage != CandidateStage::kLost &&
         state_.stage != CandidateStage::kInterrupted) ||
        now < look_again_) {
      return;
    }
    const Intent intent = state_.intent;
    const bool talks = talk_ != nullptr;
    std::string id = id_;
    lock.unlock();
    std::optional<CandidateEvent> seen;
    if (!talks) seen = LookAtDisks(intent, id);
    if (!talks && !seen && Connect().ok()) {
      lock.lock();
      Say({{"bim", "begin"}, {"automatic", state_.automatic}});
      lock.unlock();
    }
    lock.lock();
    look_again_ = steady_clock::now() + kLookAgain;
    if (id_.empty()) id_ = id;
    if (seen) Do(lock, *seen);
  }

  // Whether this process owns the disk, by this hand-over.
  bool IsOurs(const io::Dir& root) const {
    const auto owner = store::ReadOwner(root);
    if (!owner.ok() || owner->manager_id != options_.self.manager_id ||
        owner->pid != ::getpid()) {
      return false;
    }
    const auto record = store::ReadHandover(root);
    if (!record.ok()) return false;
    return *record ? (*record)->phase == HandoverPhase::kConfirmed &&
                         (*record)->candidate == options_.self.manager_id
                   : state_.automatic;
  }

  // When the locks of all disks that can be read are free: writes what was
  // decided, and tells what is there. nullopt: one is held.
  // `id` is that of the hand-over, or empty, and then found.
  std::optional<CandidateEvent> LookAtDisks(Intent intent, std::string& id) {
    struct Held {
      io::Dir root;
      UniqueFd lock;
      std::optional<store::HandoverRecord> record;
    };
    std::vector<Held> disks;
    bool taken = false;
    for (const std::string& path : host_.DiskPaths()) {
      auto root = io::Dir::Open(path);
      if (!root.ok()) continue;
      auto lock = store::LockUnowned(*root);
      if (!lock.ok()) {
        if (lock.status().code() != Code::kAborted) continue;  // no use at all
        // This process looks after its disks by itself, too.
        if (!IsOurs(*root)) return std::nullopt;
        taken = true;
        continue;
      }
      auto record = store::ReadHandover(*root);
      if (!record.ok()) continue;
      disks.push_back({*std::move(root), *std::move(lock), *record});
    }
    if (taken) return CandidateEvent::kFreeConfirmed;
    // All disks of one hand-over are decided alike, though a crash may have
    // come between one and the next.
    std::optional<store::HandoverRecord> agreed;
    // The owner went before it said which one it had begun: some disks may have
    // it, and others still the one before.
    for (const Held& disk : disks) {
      if (id.empty() && disk.record &&
          disk.record->phase == HandoverPhase::kBegun &&
          disk.record->candidate == options_.self.manager_id) {
        id = disk.record->id;
      }
    }
    for (const Held& disk : disks) {
      if (!disk.record || (!id.empty() && disk.record->id != id)) continue;
      if (!agreed || agreed->phase == HandoverPhase::kBegun) {
        agreed = disk.record;
      }
    }
    if (!agreed) {
      return disks.empty() ? std::nullopt
                           : std::optional(CandidateEvent::kFreeNone);
    }
    HandoverPhase phase = agreed->phase;
    if (const auto write =
            WriteWhenFree(Role::kCandidate, phase, agreed->automatic, intent)) {
      phase = *write;
    }
    for (const Held& disk : disks) {
      if (!disk.record || disk.record->id != agreed->id ||
          disk.record->phase == phase) {
        continue;
      }
      store::HandoverRecord decided = *disk.record;
      decided.phase = phase;
      if (base::Status put = store::DecideHandover(disk.root, decided,
                                                   options_.self.manager_id,
                                                   options_.self.version);
          !put.ok()) {
        BIM_LOG_ERROR("hand-over {}: {}", decided.id, put.message());
        return std::nullopt;
      }
    }
    switch (phase) {
      case HandoverPhase::kConfirmed:
        return CandidateEvent::kFreeConfirmed;
      case HandoverPhase::kRolledBack:
        return CandidateEvent::kFreeRolledBack;
      case HandoverPhase::kBegun:
        break;
    }
    return CandidateEvent::kFreeBegun;
  }

  const Options options_;
  Host& host_;
  std::mutex begin_mutex_;  // before the other
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;
  CandidateState state_;
  std::string id_;
  Party owner_;
  std::string refused_;
  std::shared_ptr<Talk> talk_;
  std::optional<std::vector<ListeningSocket>> sockets_;
  steady_clock::time_point heard_, look_again_, said_ready_;
  bool say_ready_ = false;
  std::deque<CandidateEvent> queue_;
  Answers begins_;
  Answers decisions_;
  std::thread reader_;
  std::thread worker_;
};

}  // namespace

std::unique_ptr<Candidate> Candidate::Start(Options options, Host& host) {
  return std::make_unique<CandidateImpl>(std::move(options), host);
}

base::Status AskToStop(const std::string& path, const Party& self) {
  BIM_ASSIGN_OR_RETURN(const Greeted greeted, Greet(path, self));
  BIM_RETURN_IF_ERROR(greeted.talk->Send({{"bim", "stop"}}));
  const auto until = steady_clock::now() + kAnswerTimeout;
  while (steady_clock::now() < until) {
    BIM_ASSIGN_OR_RETURN(auto packet, greeted.talk->Receive(milliseconds(200)));
    if (packet && TextOf(packet->document, "bim") == "stopping") {
      return base::OkStatus();
    }
  }
  return base::UnavailableError("the owner of the disk at " + path +
                                " does not answer");
}

}  // namespace bim::handover
