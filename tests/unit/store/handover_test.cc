#include "pkg/store/handover.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "pkg/store/disk.h"
#include "tests/unit/store/scratch.h"

namespace bim::store {
namespace {

using base::Code;
using test::InitDisk;
using test::TempDir;
using test::WriteAll;
using ::testing::AllOf;
using ::testing::HasSubstr;

HandoverRecord Record(HandoverPhase phase, bool automatic = false) {
  HandoverRecord record;
  record.id = "one";
  record.phase = phase;
  record.automatic = automatic;
  record.owner = "old";
  record.owner_version = "0.1.0";
  record.candidate = "new";
  record.candidate_version = "0.2.0";
  record.candidate_endpoint = "unix:/run/new";
  record.since_ns = 5;
  return record;
}

TEST(HandoverRecord, IsReadAsItWasWritten) {
  for (const auto phase : {HandoverPhase::kBegun, HandoverPhase::kConfirmed,
                           HandoverPhase::kRolledBack}) {
    const auto read = DecodeHandover(EncodeHandover(Record(phase, true)));
    BIM_ASSERT_OK(read.status());
    EXPECT_EQ(EncodeHandover(*read), EncodeHandover(Record(phase, true)));
  }
}

TEST(HandoverRecord, IsNeverGuessed) {
  const std::string good = EncodeHandover(Record(HandoverPhase::kBegun));
  for (size_t cut = 0; cut + 2 < good.size(); ++cut) {
    EXPECT_EQ(DecodeHandover(good.substr(0, cut)).status().code(),
              Code::kDataLoss)
        << cut;
  }
  std::string other = good;
  other.replace(other.find("begun"), 5, "bogun");
  EXPECT_THAT(DecodeHandover(other).status().message(), HasSubstr("bogun"));
  for (const char* text : {"[]", "null", "{}", "{\"id\":5}"}) {
    EXPECT_EQ(DecodeHandover(text).status().code(), Code::kDataLoss) << text;
  }
}

TEST(MayClaim, FollowsWhatWasAgreed) {
  using V = ClaimVerdict;
  using P = HandoverPhase;
  const struct {
    std::optional<HandoverRecord> record;
    V old_one, new_one, third;
  } cases[] = {
      {std::nullopt, V::kYes, V::kYes, V::kYes},
      {Record(P::kBegun), V::kUndecided, V::kUndecided, V::kNo},
      {Record(P::kConfirmed), V::kNo, V::kYes, V::kNo},
      {Record(P::kRolledBack), V::kYes, V::kNo, V::kNo},
      {Record(P::kBegun, true), V::kYes, V::kYes, V::kYes},
      {Record(P::kConfirmed, true), V::kYes, V::kYes, V::kYes},
      {Record(P::kRolledBack, true), V::kYes, V::kYes, V::kYes},
  };
  for (const auto& one : cases) {
    const std::string shown = one.record ? EncodeHandover(*one.record) : "none";
    EXPECT_EQ(MayClaim(one.record, "old"), one.old_one) << shown;
    EXPECT_EQ(MayClaim(one.record, "new"), one.new_one) << shown;
    EXPECT_EQ(MayClaim(one.record, "third"), one.third) << shown;
  }
}

class HandoverDiskTest : public ::testing::Test {
 protected:
  void SetUp() override { InitDisk(dir_.path(), "disk-1"); }
  std::variant<std::shared_ptr<Disk>, DiskFault> Claim(
      const std::string& manager, const std::string& version = "1") {
    return Disk::Claim(dir_.path(), "", {manager, version, "unix:/x"});
  }
  std::shared_ptr<Disk> Take(const std::string& manager,
                             const std::string& version = "1") {
    auto claimed = Claim(manager, version);
    if (auto* fault = std::get_if<DiskFault>(&claimed)) {
      ADD_FAILURE() << fault->message;
      return nullptr;
    }
    return std::get<std::shared_ptr<Disk>>(claimed);
  }
  DiskFault Fault(const std::string& manager) {
    auto claimed = Claim(manager);
    if (auto* fault = std::get_if<DiskFault>(&claimed)) return *fault;
    ADD_FAILURE() << manager << " took it";
    return {};
  }
  TempDir dir_;
};

TEST_F(HandoverDiskTest, WhoMayNotClaimSaysWhy) {
  for (const auto phase : {HandoverPhase::kBegun, HandoverPhase::kConfirmed,
                           HandoverPhase::kRolledBack}) {
    {
      const auto disk =
          Take(phase == HandoverPhase::kConfirmed ? "new" : "old");
      ASSERT_TRUE(disk);
      BIM_ASSERT_OK(disk->PutHandover(Record(phase)));
    }
    const DiskFault third = Fault("third");
    EXPECT_EQ(third.state, DiskState::kWaiting);
    EXPECT_EQ(third.uuid, "disk-1");
    ASSERT_TRUE(third.handover);
    EXPECT_EQ(third.handover->id, "one");
    switch (phase) {
      case HandoverPhase::kBegun:
        EXPECT_THAT(Fault("old").message,
                    AllOf(HasSubstr("bim handover confirm"),
                          HasSubstr("bim handover rollback")));
        EXPECT_THAT(Fault("new").message, HasSubstr("decision"));
        // Somebody decides.
        {
          const auto lock = LockUnowned(*io::Dir::Open(dir_.path()));
          BIM_ASSERT_OK(lock.status());
          EXPECT_EQ(Fault("old").state, DiskState::kOwned);
          BIM_ASSERT_OK(WriteHandover(*io::Dir::Open(dir_.path()),
                                      Record(HandoverPhase::kConfirmed)));
        }
        break;
      case HandoverPhase::kConfirmed:
        EXPECT_THAT(Fault("old").message,
                    HasSubstr("was handed over to manager new"));
        break;
      case HandoverPhase::kRolledBack:
        EXPECT_THAT(Fault("new").message, HasSubstr("waits for its owner"));
        break;
    }
    if (phase != HandoverPhase::kRolledBack) {
      BIM_ASSERT_OK(RemoveHandover(*io::Dir::Open(dir_.path())));
    }
  }
  const auto disk = Take("old");
  ASSERT_TRUE(disk);
  EXPECT_EQ(LockUnowned(disk->root()).status().code(), Code::kAborted);
  BIM_ASSERT_OK(disk->RemoveHandover());
  const auto gone = ReadHandover(disk->root());
  BIM_ASSERT_OK(gone.status());
  EXPECT_FALSE(*gone);
}

TEST_F(HandoverDiskTest, ADamagedRecordStopsTheDisk) {
  (void)Take("old");
  WriteAll(dir_ / kHandoverFile, "{");
  const DiskFault fault = Fault("old");
  EXPECT_EQ(fault.state, DiskState::kFailed);
  EXPECT_THAT(fault.message, HasSubstr(kHandoverFile));
}

TEST_F(HandoverDiskTest, WhoReleasedItWritesNothingAnyMore) {
  const auto old = Take("old");
  ASSERT_TRUE(old);
  EXPECT_FALSE(old->predecessor());
  old->Release();
  old->Release();
  const ImageKey key{"a", "u"};
  EXPECT_EQ(old->CheckOwner().code(), Code::kAborted);
  EXPECT_EQ(old->PutDesired(key, "{}").code(), Code::kAborted);
  EXPECT_EQ(old->RemoveDesired(key).code(), Code::kAborted);
  EXPECT_EQ(old->PutHandover(Record(HandoverPhase::kBegun)).code(),
            Code::kAborted);
  EXPECT_NE(old->Check(false).state, DiskState::kReady);
  // Reading goes on.
  EXPECT_TRUE(old->root().Stat(kOwnerFile).ok());
  const auto next = Take("new");
  ASSERT_TRUE(next);
  EXPECT_EQ(next->epoch(), old->epoch() + 1);
  ASSERT_TRUE(next->predecessor());
  EXPECT_EQ(next->predecessor()->manager_id, "old");
  EXPECT_TRUE(next->taken_over());
  EXPECT_EQ(IsAlive(*next->predecessor()), true);
}

TEST_F(HandoverDiskTest, TheSameManagerTakesNothingOver) {
  (void)Take("old");
  EXPECT_FALSE(Take("old")->taken_over());
  EXPECT_TRUE(Take("old", "2")->taken_over());
}

TEST(IsAlive, SeesOnlyItsOwnNamespaceAndBoot) {
  OwnerRecord self;
  DescribeSelf(self);
  EXPECT_EQ(IsAlive(self), true);
  OwnerRecord other = self;
  ++other.start_time;  // the number was given to another process
  EXPECT_EQ(IsAlive(other), false);
  other = self;
  other.boot_id = "another";
  EXPECT_EQ(IsAlive(other), false);
  other = self;
  other.pid_namespace = "pid:[1]";
  EXPECT_EQ(IsAlive(other), std::nullopt);
}

}  // namespace
}  // namespace bim::store
