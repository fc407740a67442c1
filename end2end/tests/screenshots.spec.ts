import type { Page } from '@playwright/test';
import { backups, expect, failure, section, startBackup, test, untilDone } from '../dashboard';
import { lockTable, owner, sql } from '../sandbox';

// Pictures of every page and state, to look at. Nothing is compared.
test.use({ customer: 1 });
test.describe.configure({ mode: 'serial' });

const SIZES = { phone: { width: 390, height: 844 }, desktop: { width: 1280, height: 900 } };

async function picture(page: Page, name: string): Promise<void> {
  for (const [size, viewport] of Object.entries(SIZES)) {
    await page.setViewportSize(viewport);
    for (const colorScheme of ['light', 'dark'] as const) {
      await page.emulateMedia({ colorScheme, reducedMotion: 'reduce' });
      await page.screenshot({
        path: `../target/screenshots/${name}-${colorScheme}-${size}.png`,
        // A question is modal, and the page behind it is not what it is about.
        fullPage: (await page.getByRole('dialog').count()) === 0,
      });
    }
  }
}

test('login', async ({ browser }, info) => {
  const page = await browser.newPage({ baseURL: info.project.use.baseURL });
  await page.goto('/login');
  await picture(page, 'login');
  await page.goto('/login?problem=wrong');
  await picture(page, 'login-wrong');
  await page.close();
});

test('nothing yet', async ({ page }) => {
  await page.goto('/backups');
  await page.waitForLoadState('networkidle');
  await picture(page, 'backups-none-yet');
});

test('backups', async ({ page }) => {
  await page.goto('/backups');
  for (const [part, note] of [['both', 'Before the new theme'], ['db', 'Prices for the sale are in'], ['files', '']] as const) {
    await startBackup(page, part, note);
    await untilDone(page, 'Backup of');
  }
  await picture(page, 'backups');
  await page.goto('/backups?ask=backup&type=both');
  await expect(page.locator('dialog:modal')).toBeVisible();
  await picture(page, 'ask-backup');
});

test('one backup', async ({ page }) => {
  await page.goto('/backups');
  await backups(page, 'Your backups').last().getByRole('link', { name: /^Details/ }).click();
  await expect(page.getByRole('link', { name: 'Delete …' })).toBeVisible();
  const address = page.url();
  await picture(page, 'details');
  for (const question of ['restore', 'delete']) {
    await page.goto(`${address}?ask=${question}`);
    await expect(page.locator('dialog:modal')).toBeVisible();
    await picture(page, `ask-${question}`);
  }
});

test('a running and a failed job', async ({ page }) => {
  const { database } = owner(1);
  await page.goto('/backups');
  const release = await lockTable(database, 'wp_posts');
  await startBackup(page, 'both');
  await expect(section(page, 'Backup of database & files').getByRole('progressbar')).toBeVisible();
  await picture(page, 'running');
  await page.goto('/backups?ask=cancel');
  await expect(page.locator('dialog:modal')).toBeVisible();
  await picture(page, 'ask-cancel');
  await page.goto('/backups');
  await release();
  await untilDone(page, 'Backup of database & files');

  sql('CREATE TABLE gone (id INT); CREATE VIEW broken AS SELECT id FROM gone; DROP TABLE gone', database);
  await startBackup(page, 'db');
  await expect(failure(page, 'The backup failed')).toBeVisible();
  await picture(page, 'failed');
  sql('DROP VIEW broken', database);
});

test('what is not there', async ({ page, complaints }) => {
  await page.goto(`/backups/${'0'.repeat(64)}`);
  await picture(page, 'no-such-backup');
  await page.goto('/nothing');
  await picture(page, 'no-such-page');
  complaints.splice(0);
});

test('offline', async ({ page, context, complaints }) => {
  await page.goto('/backups');
  await page.waitForLoadState('networkidle');
  await context.setOffline(true);
  await page.evaluate(() => dispatchEvent(new Event('offline')));
  await expect(page.getByText('The connection is lost')).toBeVisible();
  await picture(page, 'offline');
  await context.setOffline(false);
  complaints.splice(0);
});
