import { expect, section, test } from '../dashboard';
import { owner, sql } from '../sandbox';

test.describe('nobody', () => {
  test('is led to the login from every page, and through it to his backups', async ({ page }) => {
    for (const path of ['/', '/backups', `/backups/${'0'.repeat(64)}`]) {
      await page.goto(path);
      await expect(page).toHaveURL(/\/login/);
    }
    const { email, password } = owner(1);
    await page.getByLabel('Email').fill(email);
    await page.getByLabel('Password').fill(password);
    await page.getByRole('button', { name: 'Log in' }).click();
    await expect(page).toHaveURL(/\/backups$/);
    await expect(page.getByText('Logged in as Shop 1')).toBeVisible();
  });

  test('is not let in with a wrong password, and not told more', async ({ page }) => {
    for (const email of [owner(1).email, 'nobody@shop.example']) {
      await page.goto('/login');
      await page.getByLabel('Email').fill(email);
      await page.getByLabel('Password').fill('not the password');
      await page.getByRole('button', { name: 'Log in' }).click();
      await expect(page.getByRole('alert')).toHaveText('Email or password is not right. Please try again.');
      // The address need not be typed again, and is not for those to read who see the one of the page.
      await expect(page.getByLabel('Email')).toHaveValue(email);
      await expect(page.getByLabel('Password')).toBeFocused();
      expect(page.url()).not.toContain(email);
      await page.reload();
      await expect(page.getByLabel('Email')).toHaveValue('');
      await page.goto('/backups');
      await expect(page).toHaveURL(/\/login/);
    }
  });
});

test.describe('a customer', () => {
  test.use({ customer: 1 });

  test('logs out, and his session is worth nothing any more', async ({ page, context }) => {
    await page.goto('/backups');
    const before = await context.cookies();
    await page.getByRole('button', { name: 'Log out' }).click();
    await expect(page).toHaveURL(/\/login/);
    await context.addCookies(before);
    await page.goto('/backups');
    await expect(page).toHaveURL(/\/login/);
  });

  test('whose session ran out is told so, wherever he clicks', async ({ page, complaints }) => {
    await page.goto('/backups');
    await section(page, 'Make a backup').getByRole('link', { name: /^Database only/ }).click();
    await expect(page.locator('dialog:modal')).toBeVisible();
    sql('UPDATE backup_sessions SET created_at = 0, seen_at = 0 WHERE customer_id = 1');
    await page.getByRole('button', { name: 'Start the backup' }).click();
    await expect(page).toHaveURL(/\/login\?problem=expired/);
    await expect(page.getByRole('alert')).toHaveText('Your session has ended. Please log in again.');
    expect(complaints.splice(0).join('\n')).toContain('401');
    expect(sql('SELECT COUNT(*) FROM customer_backup_jobs WHERE customer_id = 1')).toBe('0\n');
  });
});

test.describe('two customers', () => {
  test.use({ customer: 1 });

  test('see nothing of each other', async ({ page, request, complaints }) => {
    const theirs = sql("SELECT snapshot_id FROM customer_backups WHERE customer_id = 2 AND source = 'manual'").trim();
    expect(theirs).toMatch(/^[0-9a-f]{64}$/);
    const nobodys = 'f'.repeat(64);

    await page.goto('/backups');
    await expect(page.getByText('Logged in as Shop 1')).toBeVisible();
    expect(await page.content()).not.toMatch(/shop-?\s?2/i);

    // Theirs is as good as none, to the letter.
    for (const [path, data] of [
      ['restore', { confirmation: 'RESTORE', restore_type: 'both' }],
      ['delete', { confirmation: 'DELETE' }],
    ] as const) {
      const answers = [];
      for (const id of [theirs, nobodys]) {
        const answer = await request.post(`/backups/${id}/${path}`, { data, headers: { accept: 'application/json' } });
        expect(answer.status()).toBe(404);
        answers.push({ ...(await answer.json()), request_id: 'one of its own' });
      }
      expect(answers[0]).toEqual(answers[1]);
    }
    await page.goto(`/backups/${theirs}`);
    await expect(page.getByRole('heading', { name: 'There is no such backup' })).toBeVisible();
    expect(complaints.splice(0).join('\n')).toContain('404');
  });
});
